"""Where shapes are compiled: on two threads of their own, so that those that take long hold up other shapes alone.

Adapters take turns there, a shape each, whoever has how many.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple
from weakref import WeakValueDictionary

from mint_contracts.errors import Overloaded
from mint_engine.crowd import Crowd

AT_ONCE = 2
MOST = 512  # that are compiled, or wait for that: more than an engine has requests
RETRY_S = 1.0

T = TypeVar("T")
Given = TypeVarTuple("Given")


class Compiling:
    """Of an engine's shapes. Owned by the event loop."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(AT_ONCE, "shape")
        self._crowd = Crowd(MOST)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # of adapters that have any

    async def run(self, adapter: str, work: Callable[[*Given], T], *given: *Given) -> T:
        """What `work` makes of an adapter's shape. Raises Overloaded where too many wait.

        Who no longer waits for it gives its turn to the next, and its thread once that has ended.
        """
        if not self._crowd.has_room(adapter, 1):
            raise Overloaded(
                self._engine, f"has {self._crowd.total} shapes to compile; come back later", retry_after_s=RETRY_S
            )
        turn = self._turns.setdefault(adapter, asyncio.Lock())
        with self._crowd.holding(adapter):
            async with turn:
                return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)
