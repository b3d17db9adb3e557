"""What an engine polls every few seconds: whether slots are still in memory, whether those that could not be cleared
now can be, and whether local sources have changed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from mint_engine.residency import metrics
from mint_engine.residency.retention import RetentionReport

log = structlog.get_logger(__name__)


class Retainable(Protocol):
    """Slots whose contents can be kept in memory."""

    def retain(self) -> RetentionReport:
        """Keep the contents in memory and return what was done."""
        ...


class Pollable(Protocol):
    """Something that can be polled for changes."""

    async def look(self) -> bool:
        """Return whether something has changed."""
        ...


class Poller:
    """The polling loop. It runs until it is cancelled, and calls `on_change` after a change."""

    def __init__(
        self,
        memory: Retainable,
        clear_again: Callable[[], Awaitable[None]],
        watch: Pollable,
        on_change: Callable[[], None],
        every_s: float,
    ) -> None:
        self._memory, self._clear_again, self._watch = memory, clear_again, watch
        self._on_change, self._every_s = on_change, every_s

    async def run(self) -> None:
        """Poll every `every_s` seconds."""
        while True:
            await asyncio.sleep(self._every_s)
            await self._retain()
            await self._clear_again()
            if await self._watch.look():
                self._on_change()

    async def _retain(self) -> None:
        try:
            report = await asyncio.to_thread(self._memory.retain)
        except OSError as error:  # a failing disk: a step that reads those pages fails by itself
            log.error("slots_not_tended", error=str(error))
            return
        metrics.SLOTS_MAPPED.set(report.mapped)
        metrics.SLOTS_LOCKED.set(report.locked)
        metrics.SLOTS_IN_MEMORY.set(report.share)
        if report.lost:
            metrics.SLOTS_LOST.inc(report.lost)
            log.warning("slots_left_memory", lost_bytes=report.lost, mapped_bytes=report.mapped)
