"""Runs loops that must not end while an engine serves: what else would load adapters, or notice a changed source?"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

AGAIN_S = 1.0

log = structlog.get_logger(__name__)


async def supervise(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run a loop until cancelled; if a defect ends it, log that and begin it anew after AGAIN_S."""
    while True:
        try:
            await run()
        except Exception:  # a defect, or a system that starts no more threads for a while
            log.exception("loop_defect", loop=name)
        await asyncio.sleep(AGAIN_S)
