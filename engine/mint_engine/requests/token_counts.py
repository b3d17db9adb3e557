"""Counts the tokens of a request incrementally, for penalties, which need them before each new token."""

from collections.abc import Sequence

import torch


class TokenCounts:
    """A request's distinct tokens, and the number of times that each occurs in its completion.

    Adding a token takes constant time, since the step thread, and so every request, waits for it.
    """

    def __init__(self) -> None:
        self._seen, self._chosen = _Growing(torch.int64), _Growing(torch.int64)
        self._times = _Growing(torch.float32)  # exact below 2**24, which no context reaches
        self._met: set[int] = set()
        self._places: dict[int, int] = {}  # index in `chosen` of the completion's tokens
        self._known = 0  # tokens counted so far

    @property
    def seen(self) -> torch.Tensor:
        """[distinct tokens of the prompt and the completion] int64."""
        return self._seen.now

    @property
    def chosen(self) -> torch.Tensor:
        """[distinct tokens of the completion] int64."""
        return self._chosen.now

    @property
    def times(self) -> torch.Tensor:
        """[distinct tokens of the completion] float32: the number of times that each of `chosen` occurs."""
        return self._times.now

    def take(self, tokens: Sequence[int], prompt: int) -> "TokenCounts":
        """Count the tokens added since the last call and return self; the first `prompt` tokens are the prompt's."""
        fresh = set(tokens[self._known :]) - self._met
        if fresh:
            self._met |= fresh
            self._seen.extend(list(fresh))
        for token in tokens[max(self._known, prompt) :]:
            self._count(token)
        self._known = len(tokens)
        return self

    def _count(self, token: int) -> None:
        place = self._places.get(token)
        if place is not None:
            self.times[place] += 1
            return
        self._places[token] = len(self._places)
        self._chosen.extend([token])
        self._times.extend([1.0])


class _Growing:
    """A growing tensor [n] whose capacity doubles, so that it is copied rarely."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._room, self._count = torch.empty(0, dtype=dtype), 0

    @property
    def now(self) -> torch.Tensor:
        return self._room[: self._count]

    def extend(self, values: Sequence[float]) -> None:
        count = self._count + len(values)
        if count > len(self._room):
            room = torch.empty(max(count, 2 * len(self._room)), dtype=self._room.dtype)
            room[: self._count] = self.now
            self._room = room
        self._room[self._count : count] = torch.tensor(values, dtype=self._room.dtype)
        self._count = count
