"""Who gets a slot: free ones first, then one taken from an idle copy; where there is none, one that closes for it.

Who has waited longest is first, and nobody overtakes.
"""

import asyncio
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from mint_contracts.errors import Overloaded
from mint_contracts.records import Tier
from mint_engine.residency import metrics
from mint_engine.residency.books import Books
from mint_engine.residency.copies import Copy
from mint_engine.residency.decide import victim, wanted_tier
from mint_engine.residency.turns import Terms, turn

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Waiter:
    """A copy in line, and the one that it replaces."""

    copy: Copy
    predecessor: Copy | None
    moved: asyncio.Event = field(default_factory=asyncio.Event)


class SlotTable:
    """Free slots of one device, and those who wait for one. Only the event loop's thread uses it."""

    def __init__(self, books: Books, count: int, wait_s: float, terms: Terms) -> None:
        self._books, self._wait_s, self._terms = books, wait_s, terms
        self.count = count
        self.free = list(range(count))[::-1]
        self.aside = set[int]()  # could not be cleared, and may hold their tenants: nobody's until they can be
        self._line: list[_Waiter] = []  # who has waited longest first
        self._closed: list[Copy] = []  # by the last decision

    @property
    def used(self) -> int:
        """Slots that are not free, those being filled or cleared, or set aside, among them."""
        return self.count - len(self.free)

    async def take(self, copy: Copy) -> "int | Copy":
        """A free slot, or the idle copy whose slot the caller must take at once.

        Waits within a bound, or as long as a slot closes for it, then raises Overloaded. A copy that replaces another
        may take that one's slot where there is no other: new requests then wait for the new one, while the old one
        finishes those it has. With another slot the old one serves on until the new one is loaded, for that may fail.
        A policy's slot replaces nothing: what is served of its name serves on.
        """
        current, began = self._books.current.get(copy.adapter), time.monotonic()
        waiter = _Waiter(copy, None if copy.lent or current is copy else current)
        self._line.append(waiter)
        try:
            taken = await self._wait(waiter)
        finally:
            self._line.remove(waiter)
            self.moved()
        if taken is not waiter.predecessor:
            self._serve_on(waiter)
        metrics.SLOT_WAIT_SECONDS.observe(time.monotonic() - began)
        return taken

    def give_back(self, slot: int) -> None:
        """A cleared slot is free again."""
        self.aside.discard(slot)
        self.free.append(slot)
        self.moved()

    def set_aside(self, slot: int) -> None:
        """A slot could not be cleared, so that nobody may have it until it is given back."""
        self.aside.add(slot)

    def moved(self) -> None:
        """Something became free or idle, or who waits has changed: those whose turn it may be look again."""
        if not self._line:
            self._close((), time.monotonic())
            return
        self._first().moved.set()
        for each in self._line:
            if each.predecessor is not None:
                each.moved.set()

    async def _wait(self, waiter: _Waiter) -> "int | Copy":
        refuse_at = time.monotonic() + self._wait_s
        while True:
            waiter.moved.clear()
            taken = self._look(waiter)
            if taken is not None:
                return taken
            now, again_at = time.monotonic(), refuse_at
            if waiter is self._first():
                again_at = min(refuse_at, self._take_turns(now))
            else:
                self._first().moved.set()
            if now >= refuse_at:
                if not self._closes_for(waiter):
                    raise self._refusal(waiter)
                again_at = refuse_at = now + self._wait_s
            with suppress(TimeoutError):
                async with asyncio.timeout(again_at - now):
                    await waiter.moved.wait()

    def _look(self, waiter: _Waiter) -> "int | Copy | None":
        """What a waiter may take now."""
        if waiter is self._first():
            if self.free:
                return self.free.pop()
            idle = [each for each in self._books.in_slots.values() if not each.users]  # few: views of all took longer
            key = victim([self._books.view(each) for each in idle], self._books.wants)
            if key is not None:
                return self._books.copies[key]
        replaced = waiter.predecessor
        if replaced is not None and replaced.slot is not None:
            self._books.current[waiter.copy.adapter] = waiter.copy
            self._books.changed(waiter.copy)
            if replaced.users == 0:
                return replaced
        return None

    def _refusal(self, waiter: _Waiter) -> Overloaded:
        self._serve_on(waiter)
        return Overloaded(
            f"adapter {waiter.copy.adapter!r}",
            f"has no slot: all {self.count} are in use or wanted by waves; retry later, or raise deviceSlots",
            retry_after_s=1.0,
        )

    def _serve_on(self, waiter: _Waiter) -> None:
        """New requests go to the predecessor again, where they have waited for its slot to become the waiter's."""
        copy, replaced = waiter.copy, waiter.predecessor
        if replaced is None or replaced.slot is None:
            return
        if self._books.current.get(copy.adapter, copy) is copy:
            self._books.current[copy.adapter] = replaced
            self._books.changed(copy)

    def _needs(self, waiter: _Waiter) -> bool:
        """Whether anybody would use the slot: a request's load goes on when its client has left."""
        copy = waiter.copy
        return bool(copy.users) or copy.lent or wanted_tier(self._books.wants, copy.key) is Tier.DEVICE

    def _first(self) -> _Waiter:
        """Whose turn it is; the line is not empty."""
        return next((each for each in self._line if self._needs(each)), self._line[0])

    def _closes_for(self, waiter: _Waiter) -> bool:
        """Whether one of the closed slots will be the waiter's."""
        needing = [each for each in self._line if self._needs(each)]
        return waiter in needing[: sum(each.closed is not None for each in self._closed)]

    def _take_turns(self, now: float) -> float:
        """Close and open slots as those in line need it; when to look again at the latest."""
        waiting = sum(map(self._needs, self._line))
        chosen = turn(self._books.seats(), free=len(self.free), waiting=waiting, now=now, terms=self._terms)
        self._close([self._books.in_slots[slot] for slot in chosen.closed], now)
        return chosen.again_at

    def _close(self, copies: Collection[Copy], now: float) -> None:
        """From now on these slots are closed, and no others."""
        for copy in self._closed:
            if copy not in copies:
                copy.open()
        for copy in copies:
            if copy.closed is None:
                copy.close(now)
                metrics.SLOTS_CLOSED.inc()
                log.info("slot_closed", adapter=copy.adapter, slot=copy.slot, in_flight=copy.users)
        self._closed = list(copies)
