"""What training needs of residency: slots by its books, and published revisions served from memory."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

import msgspec

from mint_contracts.awaiting import to_its_end
from mint_contracts.names import check_adapter
from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source, parent
from mint_engine.adapters.packed import Packed
from mint_engine.residency.books import Books
from mint_engine.residency.climb import Climber
from mint_engine.residency.copies import Copy
from mint_engine.residency.host import Key
from mint_engine.residency.loading import Loader
from mint_engine.residency.room import Room
from mint_engine.residency.slot_table import SlotTable
from mint_engine.residency.source_stat import SourceStat
from mint_engine.sources.asking import asked

TRAINING = "training:"  # no source has this scheme: nothing can ask for what is in such a slot

Spawn = Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]


class Lending:
    """Part of one engine's residency, with its books. Belongs to the event loop."""

    def __init__(
        self,
        books: Books,
        table: SlotTable,
        climber: Climber,
        loader: Loader,
        source_stat: SourceStat,
        spawn: Spawn,
        on_offer: Callable[[], None],
    ) -> None:
        self._books, self._table, self._climber = books, table, climber
        self._loader, self._source_stat = loader, source_stat
        self._spawn, self._on_offer = spawn, on_offer
        self.room = Room(books.host, self._evicted)
        self.offered: dict[str, Assignment] = {}

    async def reserve(self, adapter: str) -> int:
        """An empty slot, until it is released nobody else's. Raises Overloaded where none is free in time.

        Who is cancelled while it waits leaves the line at once.
        """
        taken = await self._table.take(Copy(adapter, Source(TRAINING + adapter), lent=True))
        full = isinstance(taken, Copy)
        slot = self._climber.take_from(taken) if isinstance(taken, Copy) else taken
        await self._whole(self._lend(adapter, slot, full=full))
        return slot

    async def release(self, slot: int) -> None:
        """Clear a reserved slot and give it back."""
        await self._whole(self._give_back(slot))

    async def read(self, adapter: str) -> Packed:
        """The revision that a request for the adapter would get now. Raises what loading it raises."""
        copy = self._books.for_request(check_adapter(adapter))
        source = copy.formerly or copy.source

        def load() -> Packed:
            with self._loader.disk.using(source):
                return self._loader.load(source)

        await self._source_stat.state(source)  # which may be silent
        return await asked(load)

    def offer(self, adapter: str, source: Source, packed: Packed) -> None:
        """Serve a revision that lies at `source` by now to new requests: from host memory, where it fits."""
        self.offered[adapter] = Assignment(adapter, source, Tier.DISK)
        copy = self._books.copy_of((adapter, source))
        copy.read(packed.revision, packed.rank, packed.nbytes)
        self._books.evicted(self._books.host.put(copy.key, packed) or ())
        self._books.changed(copy)
        self._on_offer()

    def withdraw(self, adapter: str) -> None:
        """From now on the map alone says what new requests get."""
        if self.offered.pop(adapter, None) is not None:
            self._on_offer()

    def announce(self, announced: Mapping[str, Source]) -> None:
        """From now on these names mean what lies there, unless a wave, the catalog or a newer offer says more."""
        self._books.set_announced(announced)
        self._on_offer()

    def _evicted(self, keys: Iterable[Key]) -> None:
        """These have given way to policies."""
        if gone := list(keys):
            self._books.evicted(gone)
            self._on_offer()

    async def _whole(self, work: Coroutine[Any, Any, Any]) -> Any:
        """To its end, even if nobody waits for it any more: the books must know whose each slot is."""
        task = self._spawn(work)
        try:
            return await to_its_end(task)
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
    """What is to be held: what waves want, of adapters in training the newest revision.

    The map tells of a revision only after the engine that has published it. What it has by that name from anywhere
    else is another wave's: a policy that happens to be called so does not take its place. What another engine has
    `announced` of a policy that is here, too, may be newer than what this one has published.
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
    """All of a name's revisions lie in one folder, each in one of its own, whose name sorts by lease and step."""
    if announced is None or announced.uri <= own.source.uri or parent(announced) != parent(own.source):
        return own
    return msgspec.structs.replace(own, source=announced)
