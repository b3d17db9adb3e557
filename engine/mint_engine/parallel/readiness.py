"""Waiting for the answers of ranks and nodes, in whatever order they come.

So the failure of one is not noticed only after another one has read its share.
"""

import select
import socket
import time
from collections.abc import Sequence
from typing import Protocol

from mint_engine.parallel.messages import Passes

_LOOK_S = 0.5  # interval between checks for newly connected nodes
_WORD_S = 60.0  # limit for a complete answer, once it has begun


class Other(Protocol):
    """A `Rank`, or a `Node`."""

    @property
    def answers(self) -> socket.socket | None:
        """The socket that its answers arrive on; None until it has connected."""
        ...

    def expect_ready(self, timeout_s: float | None) -> Sequence[Passes]:
        """Read its answer and return its passes. Raises the error that it reports, or EngineUnavailable."""
        ...


class Readiness:
    """Tracks which of the others are not ready yet, and the answers of those that are."""

    def __init__(self, others: Sequence[Other]) -> None:
        self._silent = list(others)
        self._passes: list[Passes] = []

    def listen(self) -> None:
        """Raise the error of any that has failed so far; does not wait."""
        self._hear(0.0)

    def hear_all(self, timeout_s: float | None) -> Sequence[Passes]:
        """Wait until all are ready, with `timeout_s` None without a limit; return their passes in any order.

        Raises the error of the first that fails.
        """
        until = time.monotonic() + timeout_s if timeout_s is not None else None
        while self._silent:
            left_s = until - time.monotonic() if until is not None else None
            if left_s is not None and left_s <= 0:
                self._passes += self._silent.pop(0).expect_ready(0.0)
            else:
                self._hear(left_s)
        return self._passes

    def _hear(self, wait_s: float | None) -> None:
        there = {answers.fileno(): each for each in self._silent if (answers := each.answers) is not None}
        if len(there) < len(self._silent):
            wait_s = min(_LOOK_S, wait_s if wait_s is not None else _LOOK_S)
        waiting = select.poll()
        for descriptor in there:
            waiting.register(descriptor, select.POLLIN)
        for descriptor, _ in waiting.poll(wait_s * 1000 if wait_s is not None else None):
            self._passes += there[descriptor].expect_ready(_WORD_S)
            self._silent.remove(there[descriptor])
