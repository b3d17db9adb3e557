"""What training needs from residency: slots to train in, and serving published revisions from memory."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

import msgspec

from mint_contracts.awaiting import wait_uncancelled
from mint_contracts.names import check_adapter
from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source, parent
from mint_engine.adapters.packed import Packed
from mint_engine.residency.books import Books
from mint_engine.residency.climb import Climber
from mint_engine.residency.copies import Copy
from mint_engine.residency.host import Key
from mint_engine.residency.loading import Loader
from mint_engine.residency.policy_device import PolicyDevice
from mint_engine.residency.policy_memory import PolicyMemory
from mint_engine.residency.slot_table import SlotTable
from mint_engine.residency.source_stat import SourceStat
from mint_engine.sources.blocking import run_blocking

TRAINING = "training:"  # no real source has this scheme, so no request can ask for what is in a policy's slot

Spawn = Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]


class Lending:
    """The trainer's part of one engine's residency; it shares the books. Belongs to the event loop."""

    def __init__(
        self,
        books: Books,
        table: SlotTable,
        climber: Climber,
        loader: Loader,
        source_stat: SourceStat,
        spawn: Spawn,
        on_offer: Callable[[], None],
        policy_device: PolicyDevice | None,
    ) -> None:
        self._books, self._table, self._climber = books, table, climber
        self._loader, self._source_stat = loader, source_stat
        self._spawn, self._on_offer = spawn, on_offer
        self.room = PolicyMemory(books.host, self._evicted, device=policy_device)
        self.offered: dict[str, Assignment] = {}

    async def reserve(self, adapter: str) -> int:
        """Reserve an empty slot until `release`. Raises Overloaded if none becomes free in time.

        A caller that is cancelled while it waits leaves the line at once.
        """
        taken = await self._table.take(Copy(adapter, Source(TRAINING + adapter), lent=True))
        full = isinstance(taken, Copy)
        slot = self._climber.take_from(taken) if isinstance(taken, Copy) else taken
        await self._uncancelled(self._lend(adapter, slot, full=full))
        return slot

    async def release(self, slot: int) -> None:
        """Clear a reserved slot and free it."""
        await self._uncancelled(self._give_back(slot))

    async def read(self, adapter: str) -> Packed:
        """Return the revision that a request for the adapter would get now. Raises every error of a load."""
        copy = self._books.for_request(check_adapter(adapter))
        source = copy.formerly or copy.source

        def load() -> Packed:
            with self._loader.disk.using(source):
                return self._loader.load(source)

        await self._source_stat.state(source)  # raises if the source does not respond
        return await run_blocking(load)

    def offer(self, adapter: str, source: Source, packed: Packed) -> None:
        """Serve a revision, already published at `source`, to new requests; from host memory, if it fits."""
        self.offered[adapter] = Assignment(adapter, source, Tier.DISK)
        copy = self._books.copy_of((adapter, source))
        copy.read(packed.revision, packed.rank, packed.nbytes)
        self._books.evicted(self._books.host.put(copy.key, packed) or ())
        self._books.changed(copy)
        self._on_offer()

    def withdraw(self, adapter: str) -> None:
        """Drop the offer: from now on the placement map decides what new requests get."""
        if self.offered.pop(adapter, None) is not None:
            self._on_offer()

    def announce(self, announced: Mapping[str, Source]) -> None:
        """Resolve names to these sources from now on, unless a wave, the catalog or a newer offer precedes them."""
        self._books.set_announced(announced)
        self._on_offer()

    def _evicted(self, keys: Iterable[Key]) -> None:
        """Note that these adapters were evicted from host memory for policies."""
        if gone := list(keys):
            self._books.evicted(gone)
            self._on_offer()

    async def _uncancelled(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run to the end even if the caller is cancelled, since the books must know the owner of each slot.

        A slot that a cancelled caller would have got is given back.
        """
        task = self._spawn(work)
        try:
            return await wait_uncancelled(task)
        except asyncio.CancelledError:
            if not task.cancelled() and task.exception() is None and task.result() is not None:
                await self._spawn(self._give_back(task.result()))
            raise

    async def _lend(self, adapter: str, slot: int, *, full: bool) -> int:
        if full:
            await self._climber.clear(slot)
        copy = self._books.copy_of((adapter, Source(TRAINING + adapter)))
        copy.lent = True
        copy.users += 1
        self._books.seat(copy, slot)
        return slot

    async def _give_back(self, slot: int) -> None:
        copy = self._books.in_slots[slot]
        copy.lent = False
        copy.users -= 1
        self._table.give_back(await self._climber.vacate(copy))


def with_offered(
    wanted: Mapping[str, Assignment], offered: Mapping[str, Assignment], announced: Mapping[str, Source]
) -> dict[str, Assignment]:
    """Return what to hold: what waves want, with the newest revision of adapters that are being trained here.

    The map learns of a revision only after the engine that published it. If the map has the name from a different
    folder, that is another wave's adapter, and a policy that happens to have the same name does not replace it. What
    another engine has `announced` for a policy may be newer than what this engine has published.
    """
    merged = dict(wanted)
    for adapter, own in offered.items():
        want = wanted.get(adapter)
        if want is None:
            merged[adapter] = _newest(own, announced.get(adapter))
        elif parent(want.source) == parent(own.source):
            merged[adapter] = msgspec.structs.replace(want, source=own.source)
    return merged


def _newest(own: Assignment, announced: Source | None) -> Assignment:
    """Return the newer of two sources: a name's revisions share a parent folder, and sort by lease and step."""
    if announced is None or announced.uri <= own.source.uri or parent(announced) != parent(own.source):
        return own
    return msgspec.structs.replace(own, source=announced)
