"""Arrival times of tokens, by which a round of requests is judged. Uses only the standard library."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass
class Round:
    """Collects requests as they end. All times are in seconds of one clock."""

    began: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # from the request to its first token
    gaps: list[float] = field(default_factory=list)  # between a request's tokens
    tokens: int = 0

    def add(self, began: float, stamps: Sequence[float]) -> None:
        """Add a request that was sent at `began` and whose tokens arrived at `stamps`."""
        self.began.append(began)
        self.ended.append(stamps[-1])
        self.first.append(stamps[0] - began)
        self.gaps += [after - before for before, after in pairwise(stamps)]
        self.tokens += len(stamps)

    def told(self) -> dict[str, Any]:
        """Return the seconds from the first request to the last token, the token count and rate, and all waits."""
        seconds = max(self.ended) - min(self.began)
        return {
            "seconds": seconds,
            "tokens": self.tokens,
            "rate": self.tokens / seconds,
            "first": self.first,
            "gaps": self.gaps,
        }
