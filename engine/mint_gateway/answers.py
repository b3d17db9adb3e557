"""Answers to questions that requests raise: remembered for a moment, and asked once for all who wait."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

FRESH_S = 2.0

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Known(NamedTuple, Generic[V]):
    """An answer, and whether it is younger than FRESH_S."""

    value: V
    fresh: bool


class Answers(Generic[K, V]):
    """Remembers the last `most` answers. `clock` is monotonic; `on_drop` is told the key of each that was too old."""

    def __init__(
        self, most: int, clock: Callable[[], float] = time.monotonic, on_drop: Callable[[K], None] = lambda _: None
    ) -> None:
        self._most, self._clock, self._on_drop = most, clock, on_drop
        self._known: OrderedDict[K, tuple[V, float]] = OrderedDict()
        self._asking: dict[K, asyncio.Task[V]] = {}

    def known(self, key: K) -> Known[V] | None:
        """Return what is remembered."""
        if key not in self._known:
            return None
        self._known.move_to_end(key)
        value, answered_at = self._known[key]
        return Known(value, self._clock() - answered_at < FRESH_S)

    async def asked(self, key: K, ask: Callable[[], Awaitable[V]]) -> V:
        """Return the answer to a new question, or to one that was asked before and not answered yet."""
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._ask(key, ask))
        return await asyncio.shield(asking)

    def forget(self, key: K) -> None:
        """Drop what is remembered."""
        self._known.pop(key, None)

    def forget_all(self) -> None:
        """Drop all that is remembered."""
        self._known.clear()

    def ask_again(self, about: Callable[[K], bool]) -> None:
        """Neither remember nor share the answers to come about these keys: what they tell has changed."""
        for key in [key for key in self._asking if about(key)]:
            del self._asking[key]

    async def _ask(self, key: K, ask: Callable[[], Awaitable[V]]) -> V:
        try:
            value = await ask()
        finally:
            is_last = self._asking.get(key) is asyncio.current_task()
            if is_last:
                del self._asking[key]
        if is_last:
            self._known[key] = value, self._clock()
            self._known.move_to_end(key)
            while len(self._known) > self._most:
                self._on_drop(self._known.popitem(last=False)[0])
        return value
