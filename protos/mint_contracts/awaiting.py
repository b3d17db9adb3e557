"""Waiting for work that must have ended before whoever waits goes on, even where that one is cancelled."""

import asyncio
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def to_its_end(answer: "asyncio.Future[T]") -> T:
    """What comes of it. Cancelled, however often, it lasts just as long."""
    try:
        return await asyncio.shield(answer)
    except asyncio.CancelledError:
        while not answer.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({answer})
        raise


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What each of them gives, in their order. The first error cancels the others, and is raised once they ended.

    Cancelled, it raises CancelledError in any case: Python 3.11's TaskGroup does not where a task has failed.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        if tasks:  # asyncio waits for no empty set
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        ended = await to_its_end(asyncio.gather(*tasks, return_exceptions=True))
    for each in ended:
        if isinstance(each, Exception):
            raise each
    return [task.result() for task in tasks]
