"""What has changed since the loop last looked: marked from anywhere, taken by the loop, debounced."""

import asyncio
from enum import StrEnum


class Part(StrEnum):
    """A part of the world that is observed on its own."""

    BASES = "bases"
    WAVES = "waves"
    PODS = "pods"
    STATEFULSETS = "statefulsets"
    CHILDREN = "children"  # services, budgets, accounts, secrets: nobody else touches them, so only resync looks
    MAP = "map"


EVERYTHING = frozenset(Part)
DEBOUNCE_S = 0.1
RESYNC_S = 5.0


class Dirt:
    """The marks. `mark` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parts: set[Part] = set(Part)
        self._marked = asyncio.Event()
        self._marked.set()

    def mark(self, part: Part) -> None:
        """Something of this part changed: look soon."""
        self._loop.call_soon_threadsafe(self._mark, part)

    def note(self, part: Part) -> None:
        """Look at this part when the loop looks next, without waking it. Only from the loop's own thread."""
        self._parts.add(part)

    async def take(self, timeout_s: float = RESYNC_S) -> frozenset[Part]:
        """Wait for a mark and a little longer for those that follow; everything when none comes in time."""
        try:
            await asyncio.wait_for(self._marked.wait(), timeout_s)
        except TimeoutError:
            self._parts.update(Part)
        else:
            await asyncio.sleep(DEBOUNCE_S)
        parts = frozenset(self._parts)
        self._parts.clear()
        self._marked.clear()
        return parts

    def __len__(self) -> int:
        """How many parts are marked."""
        return len(self._parts)

    def _mark(self, part: Part) -> None:
        self._parts.add(part)
        self._marked.set()
