"""Ranks and nodes that have been asked for an answer: heard in whatever order it comes.

One that can not go on is not waited for behind another that still reads its share.
"""

import select
import socket
import time
from collections.abc import Sequence
from typing import Protocol

from mint_engine.parallel.messages import Passes

_LOOK_S = 0.5  # until it is looked again who has come
_WORD_S = 60.0  # for all of an answer, once it has begun


class Other(Protocol):
    """A `Rank`, or a `Node`."""

    @property
    def answers(self) -> socket.socket | None:
        """Where its answers come in; None while it is not there."""
        ...

    def expect_ready(self, timeout_s: float | None) -> Sequence[Passes]:
        """What its answer tells. Raises the error that this tells of, or EngineUnavailable."""
        ...


class Readiness:
    """Who of these others is not ready yet, and what those that are have answered."""

    def __init__(self, others: Sequence[Other]) -> None:
        self._silent = list(others)
        self._passes: list[Passes] = []

    def listen(self) -> None:
        """Raise what has gone wrong with any of them so far; waits for nobody."""
        self._hear(0.0)

    def hear_all(self, timeout_s: float | None) -> Sequence[Passes]:
        """Wait until all are ready; None: however long. What they have told, in any order.

        Raises what goes wrong with the first that can not be ready.
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
