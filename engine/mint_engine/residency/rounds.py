"""What an engine polls every few seconds: whether slots are still in memory, whether those that could not be cleared
now can be, and whether local sources have changed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from mint_engine.residency import metrics
from mint_engine.residency.staying import Stayed

ROUND_S = 2.0

log = structlog.get_logger(__name__)


class Tended(Protocol):
    """Slots whose contents can be kept in memory."""

    def tend(self) -> Stayed:
        """Keep the contents in memory and return what was done."""
        ...


class Watchful(Protocol):
    """Something that can be polled for changes."""

    async def look(self) -> bool:
        """Return whether something has changed."""
        ...


class Rounds:
    """The polling loop. It runs until it is cancelled, and calls `on_change` after a change."""

    def __init__(
        self,
        memory: Tended,
        clear_again: Callable[[], Awaitable[None]],
        watch: Watchful,
        on_change: Callable[[], None],
        every_s: float = ROUND_S,
    ) -> None:
        self._memory, self._clear_again, self._watch = memory, clear_again, watch
        self._on_change, self._every_s = on_change, every_s

    async def run(self) -> None:
        """Poll every `every_s` seconds."""
        while True:
            await asyncio.sleep(self._every_s)
            await self._tend()
            await self._clear_again()
            if await self._watch.look():
                self._on_change()

    async def _tend(self) -> None:
        try:
            stayed = await asyncio.to_thread(self._memory.tend)
        except OSError as error:  # a failing disk: a step that reads those pages fails by itself
            log.error("slots_not_tended", error=str(error))
            return
        metrics.SLOTS_MAPPED.set(stayed.mapped)
        metrics.SLOTS_LOCKED.set(stayed.locked)
        metrics.SLOTS_IN_MEMORY.set(stayed.share)
        if stayed.lost:
            metrics.SLOTS_LOST.inc(stayed.lost)
            log.warning("slots_left_memory", lost_bytes=stayed.lost, mapped_bytes=stayed.mapped)
