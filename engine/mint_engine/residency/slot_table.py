"""Who gets a slot: free ones first, then one taken from an idle copy; a bounded wait where there is none."""

import asyncio
import time
from collections import deque
from contextlib import suppress

from mint_contracts.errors import Overloaded
from mint_engine.residency.books import Books
from mint_engine.residency.copies import Copy
from mint_engine.residency.decide import victim


class SlotTable:
    """Free slots of one device, and those who wait for one. Only the event loop's thread uses it."""

    def __init__(self, books: Books, count: int, wait_s: float) -> None:
        self._books, self._wait_s = books, wait_s
        self.count = count
        self.free = list(range(count))[::-1]
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def used(self) -> int:
        """Slots that are not free, those being filled or cleared among them."""
        return self.count - len(self.free)

    async def take(self, copy: Copy) -> "int | Copy":
        """A free slot, or the idle copy whose slot the caller must take at once.

        Waits within a bound, then raises Overloaded. A copy that replaces another may take that one's slot where
        there is no other: new requests then wait for the new one, while the old one finishes those it has.
        """
        deadline = time.monotonic() + self._wait_s
        predecessor = self._books.current.get(copy.adapter)
        while True:
            if self.free:
                return self.free.pop()
            idle = [each for each in self._books.in_slots.values() if not each.users]  # few: views of all took longer
            key = victim([self._books.view(each) for each in idle], self._books.wants)
            if key is not None:
                return self._books.copies[key]
            if predecessor is not None and predecessor is not copy and predecessor.slot is not None:
                self._books.current[copy.adapter] = copy
                self._books.changed(copy)
                if predecessor.users == 0:
                    return predecessor
            if not await self._wait(deadline):
                if predecessor is not None and predecessor.slot is not None:
                    self._books.current[copy.adapter] = predecessor
                    self._books.changed(copy)
                raise Overloaded(
                    f"adapter {copy.adapter!r}",
                    f"finds all {self.count} slots in use or wanted by waves; come back, or raise deviceSlots",
                    retry_after_s=1.0,
                )

    def give_back(self, slot: int) -> None:
        """A cleared slot is free again."""
        self.free.append(slot)
        self.moved()

    def moved(self) -> None:
        """Something became free or idle: wake those who wait, each looks again, in order."""
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait(self, deadline: float) -> bool:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                await waiter
        return True
