"""Waiting for what becomes true elsewhere: in another process, or behind a socket."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T | None] | T | None], seconds: float = 60.0) -> T:
    """The first true answer of `look`, which may be a coroutine function. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            found = look()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.01)
