"""What has changed since the loop last looked: marked from anywhere, taken by the loop, debounced."""

import asyncio
from contextlib import suppress
from enum import StrEnum


class Part(StrEnum):
    """A part of the world that is observed on its own."""

    BASES = "bases"
    WAVES = "waves"
    PODS = "pods"
    WORKLOADS = "workloads"  # what engines are made of
    CHILDREN = "children"  # services, budgets, accounts, secrets: nobody else touches them, so only resync looks
    MAP = "map"
    WHOLE = "whole"  # what the watch keeps up to date is to be listed again, beside the passes


EVERYTHING = frozenset(Part) - {Part.WHOLE}  # listed now, and waited for
RESYNC = frozenset({Part.WORKLOADS, Part.CHILDREN, Part.MAP, Part.WHOLE})
DEBOUNCE_S = 0.05
MOST_DEBOUNCE_S = 1.0
ASKED_DEBOUNCE_S = 0.05  # where somebody has changed an object, and waits
MOST_ASKED_DEBOUNCE_S = 0.25
ASKED_SHARE = 0.25  # of what the last pass took: less than for engines' reports, which come in crowds
HEARTS_EVERY_S = 2.0  # engines that fall silent tell nobody: the map is looked at this often in any case
RESYNC_S = 15.0  # the watch tells of changes at once; this finds what it missed
RESYNC_SHARE = 0.1  # of the loop's time, at most: where a look at everything takes long, it is rarer than RESYNC_S


class Dirt:
    """The marks. `mark` may be called from any thread, all else only from the loop's own."""

    def __init__(self, resync_s: float = RESYNC_S) -> None:
        self._loop = asyncio.get_running_loop()
        self._resync_s = resync_s
        self._due = EVERYTHING  # the first look
        self._resync_at = self._loop.time()
        self._taken_at = self._loop.time()
        self._whole_since: float | None = None  # when the loop took everything, if that is what it now works on
        self._parts: set[Part] = set()
        self._marked = asyncio.Event()
        self._asked = asyncio.Event()
        self._later: dict[Part, asyncio.TimerHandle] = {}

    def mark(self, part: Part) -> None:
        """Something of this part changed: look soon."""
        self._loop.call_soon_threadsafe(self._mark, part)

    def wake(self) -> None:
        """Look very soon, at what the watch has seen: somebody has changed an object. From any thread."""
        self._loop.call_soon_threadsafe(self._ask)

    def mark_in(self, part: Part, after_s: float) -> None:
        """Mark it after a while, for what is owed by then; of several for one part the earliest counts."""
        due, waiting = self._loop.time() + after_s, self._later.get(part)
        if waiting is None or due < waiting.when():
            if waiting is not None:
                waiting.cancel()
            self._later[part] = self._loop.call_at(due, self._mark_now, part)

    def note(self, part: Part) -> None:
        """Look at this part when the loop looks next, without waking it."""
        self._parts.add(part)

    async def take(self) -> frozenset[Part]:
        """Wait for a mark and a little longer for those that follow; the resync, once it is time for that again.

        Marks never put that time off: heartbeats mark the map more often than it comes.
        """
        now = self._loop.time()
        busy_s, self._taken_at = now - self._taken_at, now
        if self._whole_since is not None:
            took_s, self._whole_since = now - self._whole_since, None
            self._resync_at = now + max(self._resync_s, took_s / RESYNC_SHARE)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(self._resync_at, now + HEARTS_EVERY_S)):
                await self._marked.wait()
                await self._gather(busy_s)
        if self._loop.time() >= self._resync_at:
            self._whole_since = self._loop.time()
            self._parts |= self._due
            self._due = RESYNC
        if not self._parts and not self._marked.is_set():
            self._parts.add(Part.MAP)
        parts = frozenset(self._parts)
        self._taken_at = self._loop.time()
        self._parts.clear()
        self._marked.clear()
        self._asked.clear()
        return parts

    def __len__(self) -> int:
        """How many parts are marked."""
        return len(self._parts)

    async def _gather(self, busy_s: float) -> None:
        """Let more come: the longer a pass takes, the more, so that planning never takes more than half the time.

        Who has changed an object waits less.
        """
        began = self._loop.time()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(DEBOUNCE_S, busy_s), MOST_DEBOUNCE_S)):
                await self._asked.wait()
                enough = min(max(ASKED_DEBOUNCE_S, ASKED_SHARE * busy_s), MOST_ASKED_DEBOUNCE_S)
                await asyncio.sleep(max(ASKED_DEBOUNCE_S, began + enough - self._loop.time()))

    def _ask(self) -> None:
        self._asked.set()
        self._marked.set()

    def _mark(self, part: Part) -> None:
        self._parts.add(part)
        self._marked.set()

    def _mark_now(self, part: Part) -> None:
        del self._later[part]
        self._mark(part)
