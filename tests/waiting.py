"""Waiting until something becomes true elsewhere: in another task, thread or process, or behind a socket."""

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

POLL_S = 0.01
PATIENCE_S = 240.0

T = TypeVar("T")


@overload
async def until(look: Callable[[], Coroutine[Any, Any, T | None]], timeout_s: float = ...) -> T: ...


@overload
async def until(look: Callable[[], object], timeout_s: float = ...) -> object: ...


async def until(look: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """Return the first true answer of `look`, which may be a coroutine function. Raises TimeoutError.

    The limit is generous, since only a failing test reaches it, and the machines that run tests are busy: a process
    that imports torch may take two minutes to start.
    """
    async with asyncio.timeout(timeout_s):
        while True:
            found = look()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(POLL_S)


def block_until(look: Callable[[], T]) -> T:
    """Return the first true answer of `look`, and block the thread until then. Raises TimeoutError."""
    give_up = time.monotonic() + PATIENCE_S
    while not (found := look()):
        if time.monotonic() > give_up:
            raise TimeoutError(f"still {found} after {PATIENCE_S} s")
        time.sleep(POLL_S)
    return found


def join(thread: threading.Thread) -> None:
    """Wait until a thread has ended. Raises TimeoutError."""
    thread.join(PATIENCE_S)
    if thread.is_alive():
        raise TimeoutError(f"{thread.name} has not ended after {PATIENCE_S} s")
