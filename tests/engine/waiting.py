"""Waiting for what becomes true elsewhere: in another process, or behind a socket."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def until(look: Callable[[], Coroutine[Any, Any, T | None]], seconds: float = ...) -> T: ...


@overload
async def until(look: Callable[[], object], seconds: float = ...) -> object: ...


async def until(look: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true answer of `look`, which may be a coroutine function. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            found = look()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.01)
