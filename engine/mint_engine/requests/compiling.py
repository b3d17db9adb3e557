"""Compiles shapes on two threads of their own, so that slow ones delay only other shapes.

Clients share them, one thread each, however many shapes each has; where they cannot be told apart, adapters do.
"""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from mint_contracts.errors import Overloaded
from mint_contracts.shared_threads import SharedThreads
from mint_engine.place_counter import PlaceCounter

AT_ONCE = 2
MOST = 512  # shapes being compiled or waiting: more than an engine has requests
RETRY_S = 1.0

T = TypeVar("T")
Given = TypeVarTuple("Given")


class Compiling:
    """Compiles an engine's shapes. Owned by the event loop."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._threads = SharedThreads(AT_ONCE, "shape")
        self._counter = PlaceCounter[str](MOST)

    async def run(self, party: str, work: Callable[[*Given], T], *given: *Given) -> T:
        """Run `work` for a shape of a client or adapter and return its result. Raises Overloaded if too many wait."""
        if not self._counter.has_room(party, 1):
            raise Overloaded(
                self._engine,
                f"has {self._counter.total} schemas and grammars to compile; retry later",
                retry_after_s=RETRY_S,
            )
        with self._counter.holding(party):
            return await self._threads.run(party, lambda: work(*given))
