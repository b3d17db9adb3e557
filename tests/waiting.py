"""Waiting for what becomes true elsewhere: in another task or process, or behind a socket."""

import asyncio
import inspect
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
    """The first true answer of `look`, which may be a coroutine function. Raises TimeoutError.

    The limit is generous, since only a test that fails waits for it, and machines that run tests are busy: there a
    process that imports torch may take two minutes to be there.
    """
    async with asyncio.timeout(timeout_s):
        while True:
            found = look()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(POLL_S)
