"""Waiting for what becomes true elsewhere: in another task or process, or behind a socket."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T] | T], timeout_s: float = 10.0) -> T:
    """The first true answer of `look`, which may be a coroutine function. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = look()
            answer: T = await found if inspect.isawaitable(found) else found
            if answer:
                return answer
            await asyncio.sleep(0.005)
