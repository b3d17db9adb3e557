"""Waiting for work that must have ended before the waiter goes on, even if the waiter is cancelled."""

import asyncio
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def wait_uncancelled(answer: "asyncio.Future[T]") -> T:
    """Return the result of `answer`. However often the caller is cancelled, it waits until `answer` is done."""
    try:
        return await asyncio.shield(answer)
    except asyncio.CancelledError:
        while not answer.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({answer})
        raise


async def end_tasks(tasks: Iterable["asyncio.Future[Any]"]) -> None:
    """Cancel tasks and wait until all have ended, however that is."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


async def gather_or_cancel(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently; return their results in order. The first error cancels the others, then is raised.

    If cancelled, it always raises CancelledError; Python 3.11's TaskGroup does not if a task has failed as well.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        if tasks:  # asyncio.wait refuses an empty set
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        ended = await wait_uncancelled(asyncio.gather(*tasks, return_exceptions=True))
    for each in ended:
        if isinstance(each, Exception):
            raise each
    return [task.result() for task in tasks]
