"""Compiles shapes on two threads of their own, so that slow ones delay only other shapes.

Clients take turns, one shape each, however many each has; where they cannot be told apart, adapters do.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar, TypeVarTuple
from weakref import WeakValueDictionary

from mint_contracts.errors import Overloaded
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
        self._threads = ThreadPoolExecutor(AT_ONCE, "shape")
        self._counter = PlaceCounter[str](MOST)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by party, while in use

    async def run(self, party: str, work: Callable[[*Given], T], *given: *Given) -> T:
        """Run `work` for a shape of a client or adapter and return its result. Raises Overloaded if too many wait.

        A turn ends when `work` ends, even if the caller was cancelled, so that no party has two threads at once.
        Until then, the shape counts.
        """
        if not self._counter.has_room(party, 1):
            raise Overloaded(
                self._engine,
                f"has {self._counter.total} schemas and grammars to compile; retry later",
                retry_after_s=RETRY_S,
            )
        turn = self._turns.setdefault(party, asyncio.Lock())
        loop = asyncio.get_running_loop()

        def leave() -> None:
            self._counter.leave(party)
            turn.release()

        def end(_: object) -> None:
            with suppress(RuntimeError):  # the loop has closed, and nobody waits for a turn
                loop.call_soon_threadsafe(leave)

        with self._counter.holding(party):
            await turn.acquire()
            compiled: Future[T] = Future()
            try:
                self._threads.submit(_compile, compiled, lambda: work(*given))
            except RuntimeError:  # no thread could be started, but it is queued and another may have begun it
                if compiled.cancel():
                    turn.release()
                    raise
            self._counter.enter(party, 1)  # again, since it counts until `work` ends
        compiled.add_done_callback(end)
        return await asyncio.wrap_future(compiled)


def _compile(compiled: Future[T], work: Callable[[], T]) -> None:
    """Do `work`, unless it was cancelled before it began."""
    if not compiled.set_running_or_notify_cancel():
        return
    try:
        compiled.set_result(work())
    except BaseException as error:  # noqa: BLE001 - raised to whoever waits
        compiled.set_exception(error)
        del compiled  # its error refers to this frame
