"""What an engine looks at every few seconds because nobody tells it: whether slots are still in memory, whether those
that could not be cleared now can be, and whether local sources have changed.
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
    """Memory that can be kept where it is."""

    def tend(self) -> Stayed:
        """Have it stay in memory; what came of it."""
        ...


class Watchful(Protocol):
    """What may find that something has changed."""

    async def look(self) -> bool:
        """Whether it has."""
        ...


class Rounds:
    """Runs until it is cancelled; calls `on_change` after what changed."""

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
        """Look, and look again after a while."""
        while True:
            await asyncio.sleep(self._every_s)
            await self._tend()
            await self._clear_again()
            if await self._watch.look():
                self._on_change()

    async def _tend(self) -> None:
        try:
            stayed = await asyncio.to_thread(self._memory.tend)
        except OSError as error:  # a disk that fails: the step that reads those pages fails by itself
            log.error("slots_not_tended", error=str(error))
            return
        metrics.SLOTS_MAPPED.set(stayed.mapped)
        metrics.SLOTS_LOCKED.set(stayed.locked)
        metrics.SLOTS_IN_MEMORY.set(stayed.share)
        if stayed.lost:
            metrics.SLOTS_LOST.inc(stayed.lost)
            log.warning("slots_left_memory", lost_bytes=stayed.lost, mapped_bytes=stayed.mapped)
