"""Assigns slots to copies: a free slot first, then an idle copy's, and failing that one that is closed for it.

Clients take turns; each one's copies are served in the order in which they came.
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
from mint_engine.residency.slot_turns import SlotTerms, choose_closed, in_turns, remember

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Waiter:
    """A copy that waits in line, and the copy that it replaces."""

    copy: Copy
    predecessor: Copy | None
    moved: asyncio.Event = field(default_factory=asyncio.Event)


class SlotTable:
    """The free slots of one device, and the copies that wait for one. Used only on the event loop's thread."""

    def __init__(self, books: Books, count: int, wait_s: float, terms: SlotTerms) -> None:
        self._books, self._wait_s, self._terms = books, wait_s, terms
        self.count = count
        self.free = list(range(count))[::-1]
        self.aside = set[int]()  # could not be cleared and may still hold a tenant: unused until they can
        self._line: list[_Waiter] = []  # longest wait first
        self._last: dict[str, int] = {}  # when each client got its last slot, the longest ago first
        self._closed: list[Copy] = []  # those that the last decision closed

    @property
    def used(self) -> int:
        """Number of slots that are not free, including those being filled or cleared, or set aside."""
        return self.count - len(self.free)

    async def take(self, copy: Copy) -> "int | Copy":
        """Return a free slot, or the idle copy whose slot the caller must take at once.

        Raises Overloaded after a bounded wait, which is extended while a slot is closed for this copy. A copy that
        replaces another may take that one's slot if there is no other: new requests then wait for the new copy while
        the old one finishes those it has. If there is another slot, the old copy goes on serving until the new one
        is loaded, since that may fail. A policy's slot replaces nothing: what is served under its name goes on.
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
        """Return a cleared slot to the free ones."""
        self.aside.discard(slot)
        self.free.append(slot)
        self.moved()

    def set_aside(self, slot: int) -> None:
        """Withhold a slot that could not be cleared, until it is given back."""
        self.aside.add(slot)

    def moved(self) -> None:
        """Wake the waiters that may now get a slot. Call this when a slot became free or idle or the line changed."""
        if not self._line:
            self._close((), time.monotonic())
            return
        self._first().moved.set()
        for each in self._line:
            if self._may_replace(each):
                each.moved.set()

    async def _wait(self, waiter: _Waiter) -> "int | Copy":
        refuse_at = time.monotonic() + self._wait_s
        while True:
            waiter.moved.clear()
            first = self._first()
            taken = self._look(waiter, is_first=waiter is first)
            if taken is not None:
                return taken
            now, again_at = time.monotonic(), refuse_at
            if waiter is first:
                again_at = min(refuse_at, self._take_turns(now))
            else:
                first.moved.set()
            if now >= refuse_at:
                if not self._closes_for(waiter):
                    raise self._refusal(waiter)
                again_at = refuse_at = now + self._wait_s
            with suppress(TimeoutError):
                async with asyncio.timeout(again_at - now):
                    await waiter.moved.wait()

    def _may_replace(self, waiter: _Waiter) -> bool:
        """Return whether the waiter may take its predecessor's slot, or new requests must first be kept from it."""
        replaced = waiter.predecessor
        if replaced is None or replaced.slot is None:
            return False
        return not replaced.users or self._books.current.get(waiter.copy.adapter) is replaced

    def _look(self, waiter: _Waiter, *, is_first: bool) -> "int | Copy | None":
        """Return what a waiter may take now, or None."""
        if is_first and (spare := self._spare()) is not None:
            remember(self._last, waiter.copy.client(self._last), self._books.tick())
            return spare
        replaced = waiter.predecessor
        if replaced is not None and replaced.slot is not None:
            self._books.current[waiter.copy.adapter] = waiter.copy
            self._books.changed(waiter.copy)
            if replaced.users == 0:
                return replaced
        return None

    def _spare(self) -> "int | Copy | None":
        """Return a free slot, or the idle copy that gives way first, or None."""
        if self.free:
            return self.free.pop()
        idle = [each for each in self._books.in_slots.values() if not each.users]  # few: views of all took longer
        key = victim([self._books.view(each) for each in idle], self._books.wants)
        return None if key is None else self._books.copies[key]

    def _refusal(self, waiter: _Waiter) -> Overloaded:
        self._serve_on(waiter)
        return Overloaded(
            f"adapter {waiter.copy.adapter!r}",
            f"has no slot: all {self.count} are in use or wanted by waves; retry later, or raise deviceSlots",
            retry_after_s=1.0,
        )

    def _serve_on(self, waiter: _Waiter) -> None:
        """Send new requests to the predecessor again, if they have been waiting for the waiter to get its slot."""
        copy, replaced = waiter.copy, waiter.predecessor
        if replaced is None or replaced.slot is None:
            return
        if self._books.current.get(copy.adapter, copy) is copy:
            self._books.current[copy.adapter] = replaced
            self._books.changed(copy)

    def _needs(self, waiter: _Waiter) -> bool:
        """Return whether anybody would use the slot; a load goes on after the client that caused it has left."""
        copy = waiter.copy
        return bool(copy.users) or copy.lent or wanted_tier(self._books.wants, copy.key) is Tier.DEVICE

    def _first(self) -> _Waiter:
        """Return the waiter whose turn it is. The line must not be empty."""
        return (self._in_turns() or self._line)[0]

    def _in_turns(self) -> list[_Waiter]:
        """Return those in line who need a slot, in the order of their turns."""
        needing = [each for each in self._line if self._needs(each)]
        return [needing[at] for at in in_turns([each.copy.askers for each in needing], self._last)]

    def _closes_for(self, waiter: _Waiter) -> bool:
        """Return whether the waiter will get one of the closed slots."""
        return waiter in self._in_turns()[: sum(each.closed is not None for each in self._closed)]

    def _take_turns(self, now: float) -> float:
        """Close and open slots as the line requires; return the time at which to look again at the latest."""
        waiting = sum(map(self._needs, self._line))
        chosen = choose_closed(self._books.seats(), free=len(self.free), waiting=waiting, now=now, terms=self._terms)
        self._close([self._books.in_slots[slot] for slot in chosen.closed], now)
        return chosen.again_at

    def _close(self, copies: Collection[Copy], now: float) -> None:
        """Close exactly these copies' slots from now on."""
        for copy in self._closed:
            if copy not in copies:
                copy.open()
        for copy in copies:
            if copy.closed is None:
                copy.close(now)
                metrics.SLOTS_CLOSED.inc()
                log.info("slot_closed", adapter=copy.adapter, slot=copy.slot, in_flight=copy.users)
        self._closed = list(copies)
