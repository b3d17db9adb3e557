"""What has changed since the loop's last pass: marked from any thread, taken by the loop, debounced."""

import asyncio
from contextlib import suppress
from enum import StrEnum


class Part(StrEnum):
    """A part of the observed state that is read separately."""

    BASES = "bases"
    WAVES = "waves"
    PODS = "pods"
    WORKLOADS = "workloads"  # what engines are made of
    CHILDREN = "children"  # services, budgets, accounts, policies, secrets
    MAP = "map"
    RELIST = "relist"  # list again, in the background, what the watch keeps up to date


EVERYTHING = frozenset(Part) - {Part.RELIST}  # listed within the pass
RESYNC = frozenset({Part.WORKLOADS, Part.CHILDREN, Part.MAP, Part.RELIST})
DEBOUNCE_S = 0.05
MOST_DEBOUNCE_S = 1.0
ASKED_DEBOUNCE_S = 0.05  # when somebody has changed an object and waits
MOST_ASKED_DEBOUNCE_S = 0.25
ASKED_SHARE = 0.25  # of the last pass's duration: less than for engines' reports, which come in bursts
MAP_READ_EVERY_S = 2.0  # engines that fall silent send no hint, so the map is read at least this often
RESYNC_S = 15.0  # the watch reports changes at once; the resync finds what it missed
RESYNC_SHARE = 0.1  # of the loop's time, at most: a resync that takes long comes less often than RESYNC_S


class Dirt:
    """The marks. `mark` and `wake` may be called from any thread, all else only from the loop's own."""

    def __init__(self, resync_s: float = RESYNC_S) -> None:
        self._loop = asyncio.get_running_loop()
        self._resync_s = resync_s
        self._due = EVERYTHING  # what the next resync reads: everything the first time, then RESYNC
        self._resync_at = self._loop.time()
        self._taken_at = self._loop.time()
        self._whole_since: float | None = None  # when the loop took a resync, while it works on one
        self._parts: set[Part] = set()
        self._marked = asyncio.Event()
        self._asked = asyncio.Event()
        self._later: dict[Part, asyncio.TimerHandle] = {}

    def mark(self, part: Part) -> None:
        """Note a change of this part and wake the loop soon. From any thread."""
        self._loop.call_soon_threadsafe(self._mark, part)

    def wake(self) -> None:
        """Wake the loop very soon for what the watch has seen: somebody has changed an object. From any thread."""
        self._loop.call_soon_threadsafe(self._ask)

    def mark_in(self, part: Part, after_s: float) -> None:
        """Mark a part in `after_s` seconds, when a delayed write is due; per part the earliest time counts."""
        due, waiting = self._loop.time() + after_s, self._later.get(part)
        if waiting is None or due < waiting.when():
            if waiting is not None:
                waiting.cancel()
            self._later[part] = self._loop.call_at(due, self._mark_now, part)

    def note(self, part: Part) -> None:
        """Have the next pass read this part, without waking the loop."""
        self._parts.add(part)

    async def take(self) -> frozenset[Part]:
        """Wait for a mark and a little longer for those that follow; returns the parts to read.

        Returns the map after MAP_READ_EVERY_S without a mark, and adds a resync's parts once that is due. Marks never
        postpone a resync: heartbeats mark the map more often than it comes.
        """
        now = self._loop.time()
        busy_s, self._taken_at = now - self._taken_at, now
        if self._whole_since is not None:
            took_s, self._whole_since = now - self._whole_since, None
            self._resync_at = now + max(self._resync_s, took_s / RESYNC_SHARE)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(self._resync_at, now + MAP_READ_EVERY_S)):
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
        """Return how many parts are marked."""
        return len(self._parts)

    async def _gather(self, busy_s: float) -> None:
        """Wait for more marks, as long as the last pass took, so that passes take at most half of the time.

        The wait is shorter when somebody has changed an object.
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
