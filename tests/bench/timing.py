"""When tokens came: what a round of requests is judged by. Standard library alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass
class Round:
    """Collects requests as they end. All times are of one clock, in seconds."""

    began: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # from asking to the first token
    gaps: list[float] = field(default_factory=list)  # between a request's tokens
    tokens: int = 0

    def add(self, began: float, stamps: Sequence[float]) -> None:
        """A request, asked at `began`, whose tokens came at `stamps`."""
        self.began.append(began)
        self.ended.append(stamps[-1])
        self.first.append(stamps[0] - began)
        self.gaps += [after - before for before, after in pairwise(stamps)]
        self.tokens += len(stamps)

    def told(self) -> dict[str, Any]:
        """Seconds from the first question to the last token, tokens, and every request's waits."""
        seconds = max(self.ended) - min(self.began)
        return {
            "seconds": seconds,
            "tokens": self.tokens,
            "rate": self.tokens / seconds,
            "first": self.first,
            "gaps": self.gaps,
        }
