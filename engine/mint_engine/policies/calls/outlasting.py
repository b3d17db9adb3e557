"""Work that goes on although whoever waits for it leaves, such as a client that disconnects."""

import asyncio
from functools import partial
from typing import TypeVar

import structlog

T = TypeVar("T")
_log = structlog.get_logger(__name__)


async def outlast(work: "asyncio.Task[T]", policy: str) -> T:
    """Return the result of `work`, or raise its error. If the caller is cancelled, `work` goes on.

    Nobody may wait for it any more then, so an error of it is logged as an event that names the policy.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(partial(_note, policy))
        raise


def _note(policy: str, work: "asyncio.Task[T]") -> None:
    if not work.cancelled() and (error := work.exception()) is not None:
        _log.warning("failed_after_its_caller_left", policy=policy, error=str(error), kind=type(error).__name__)
