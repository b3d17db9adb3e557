"""Checks that the books of residency balance: whenever the engine falls idle, and in tests after every change."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import structlog

from mint_engine.metrics import IMBALANCES
from mint_engine.residency import metrics
from mint_engine.residency.books import Books
from mint_engine.residency.copies import Copy
from mint_engine.residency.holding import Tenant
from mint_engine.residency.policy_memory import PolicyMemory
from mint_engine.residency.slot_table import SlotTable

log = structlog.get_logger(__name__)


class Emptiness(Protocol):
    """Something that knows whether a slot is empty."""

    def is_empty(self, slot: int) -> bool:
        """Return whether a slot has no tenant."""
        ...


@dataclass(frozen=True)
class Evidence:
    """What the books are compared with.

    `in_flight` returns what requests expect in their slots, or None if unknown. `trained` returns the bytes of host
    memory that the trainer's policies have.
    """

    memory: Emptiness
    in_flight: Callable[[], frozenset[Tenant] | None]
    room: PolicyMemory
    trained: Callable[[], int]


class Audit:
    """Audits one engine's books. Used only on the event loop's thread."""

    def __init__(self, books: Books, table: SlotTable, evidence: Evidence, every_s: float) -> None:
        self._books, self._table, self._evidence = books, table, evidence
        self._every_s = every_s
        self._stirred = asyncio.Event()
        self._unattended = frozenset[tuple[int, int]]()  # (slot, use) pairs found by the last audit

    def stir(self) -> None:
        """Request an audit: something may have changed since the last one, and nothing loads now."""
        self._stirred.set()

    async def run(self, idle: Callable[[], bool]) -> None:
        """Audit after each `stir` if the engine is idle, at most every `every_s` seconds. Runs until cancelled."""
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            if not idle():
                continue  # `stir` is called again when it is
            self.look(busy=False)
            self._look_for_unattended()
            if self._books.serving or self._books.awaiting.total:
                self._stirred.set()  # requests release their slots without calling `stir`
            await asyncio.sleep(self._every_s)

    def imbalance(self, *, busy: bool) -> str:
        """Describe an inconsistency, or return "" if there is none."""
        evidence = self._evidence
        found = find_imbalance(self._books, self._table, evidence.memory, evidence.in_flight() or (), busy=busy)
        return found or evidence.room.imbalance(evidence.trained())

    def look(self, *, busy: bool) -> None:
        """Audit once. A defect is logged, and serving goes on."""
        problem = self.imbalance(busy=busy)
        metrics.BALANCED.set(not problem)
        if problem:
            self._note(problem)

    def _look_for_unattended(self) -> None:
        """Report slots that were held for no request at both the last audit and this one: they will stay held.

        A request releases its slot a moment after it has ended, so a single audit proves nothing.
        """
        in_flight = self._evidence.in_flight()
        if in_flight is None:
            return
        read, held = {tenant.slot for tenant in in_flight}, self._books.in_slots.items()
        found = frozenset((slot, copy.used) for slot, copy in held if copy.serving and slot not in read)
        for slot, _ in found & self._unattended:
            metrics.BALANCED.set(False)
            self._note(f"slot {slot} is held for {self._books.in_slots[slot].adapter!r}, and no request is there")
        self._unattended = found

    def _note(self, problem: str) -> None:
        IMBALANCES.inc()
        log.error("books_do_not_balance", part="residency", problem=problem)


def find_imbalance(
    books: Books, table: SlotTable, memory: Emptiness, in_flight: Iterable[Tenant] = (), *, busy: bool
) -> str:
    """Describe an inconsistency of slots, references, requests in flight or bytes, or return "" if there is none.

    `busy`: some slot may be being filled or cleared, and so belong to nobody now.
    """
    return next(_defects(books, table, memory, in_flight, busy), "")


def _defects(
    books: Books, table: SlotTable, memory: Emptiness, in_flight: Iterable[Tenant], busy: bool
) -> Iterator[str]:
    free, slots = table.free, table.count
    taken = {copy.slot: copy for copy in books.copies.values() if copy.slot is not None}
    seats = len([copy for copy in books.copies.values() if copy.slot is not None])
    every = [*taken, *free, *table.aside]
    if len(set(every)) != len(every) or seats != len(taken) or not set(every) <= set(range(slots)):
        yield f"slots are entered wrongly: taken {sorted(taken)}, free {sorted(free)}"
    if not busy and len(every) != slots:
        yield f"{len(taken)} slots taken, {len(free)} free and {len(table.aside)} set aside are not {slots}"
    if taken != books.in_slots:
        yield f"slots {sorted(taken)} are taken where {sorted(books.in_slots)} are entered as taken"
    if full := [slot for slot in free if not memory.is_empty(slot)]:
        yield f"slots {full} are free and not empty"
    yield from _of_copies(books)
    yield from _of_users(books)
    yield from _of_tenants(books, in_flight)
    for name, tier in (("host", books.host), ("disk", books.disk)):
        if problem := tier.imbalance():
            yield f"the {name} tier: {problem}"


def _of_copies(books: Books) -> Iterator[str]:
    for copy in books.copies.values():
        if (copy.load is not None) != (copy in books.loading):
            yield f"adapter {copy.adapter!r} is not entered as loading, or no longer is"
    if sum(map(len, books.of_adapter.values())) != len(books.copies):
        yield "copies by adapter and by source do not agree"


def _of_users(books: Books) -> Iterator[str]:
    """Every user that a copy counts must be known; a copy that counts too many would never leave its slot."""
    served = sum(copy.serving for copy in books.copies.values())
    if served != books.serving:
        yield f"{books.serving} requests are told to have a slot, and copies count {served}"
    for adapter in books.of_adapter.keys() | books.awaiting.parties:
        copies = books.of_adapter.get(adapter, ())
        users, known = sum(copy.users for copy in copies), sum(map(_known, copies))
        waiting = books.awaiting.of(adapter) - books.awaiting_open_slot.of(adapter)
        if users != known + waiting or any(copy.users < _known(copy) for copy in copies):
            yield f"adapter {adapter!r} has {users} users, where {known} are known and {waiting} wait for its load"


def _known(copy: Copy) -> int:
    return copy.serving + copy.lent + copy.in_reserve + (copy.arrival is not None)


def _of_tenants(books: Books, in_flight: Iterable[Tenant]) -> Iterator[str]:
    """A slot must hold the revision that each of its requests in flight began with, and be held for requests.

    The revision in a policy's slot is known only to the trainer.
    """
    for tenant in in_flight:
        copy = books.in_slots.get(tenant.slot)
        tenancy = f"slot {tenant.slot} is read as {tenant.adapter!r} at {tenant.revision}"
        if copy is None or copy.adapter != tenant.adapter:
            yield f"{tenancy}, and holds {repr(copy.adapter) if copy else 'nobody'}"
        elif not copy.lent and copy.revision != tenant.revision:
            yield f"{tenancy}, and holds {copy.revision}"
        elif not (copy.lent or copy.serving):
            yield f"{tenancy}, and is held for nobody"
