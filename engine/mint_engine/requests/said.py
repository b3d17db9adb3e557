"""Which tokens a request has so far, kept as they come: a penalty asks before each."""

from collections import Counter
from collections.abc import Sequence

import torch


class Said:
    """A request's distinct tokens, and how often its completion has each."""

    def __init__(self) -> None:
        self.seen = torch.empty(0, dtype=torch.int64)  # [distinct tokens of the prompt and the completion]
        self.counts: Counter[int] = Counter()  # in the completion alone
        self._seen: set[int] = set()
        self._known = 0  # tokens taken in

    def take(self, tokens: Sequence[int], prompt: int) -> "Said":
        """Take in those that have come since: of all `tokens` so far the first `prompt` are the prompt's."""
        self.counts.update(tokens[max(self._known, prompt) :])
        fresh = set(tokens[self._known :]) - self._seen
        if fresh:
            self._seen |= fresh
            self.seen = torch.cat([self.seen, torch.tensor(list(fresh))])
        self._known = len(tokens)
        return self
