"""The books of one engine's residency: its copies, what waves want of them, and which of them answer new requests.

No I/O and no waiting: used only on the event loop's thread, and every method leaves the books consistent. Changes are
noted per adapter, so that a change costs the same however many adapters there are.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from mint_contracts import records
from mint_contracts.errors import AdapterNotFound, MintError, SourceNotFound
from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source, child
from mint_engine.place_counter import PlaceCounter
from mint_engine.residency.arrival import Arrival
from mint_engine.residency.copies import FORGET_S, Copy
from mint_engine.residency.decide import CopyView, Wants, gives_way, satisfied, wanted_tier
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.holding import AdapterStatus
from mint_engine.residency.host import HostTier, Key
from mint_engine.residency.report import AdapterView, report
from mint_engine.residency.slot_turns import Seat


class Books:
    """All copies by key, the wants by adapter, and the current copy of each wanted adapter.

    A copy that is only on disk and that no wave wants is forgotten: the disk tier knows its file.
    """

    def __init__(self, host: HostTier, disk: DiskTier, store: Source | None, requests_waiting: int) -> None:
        self.host, self.disk, self.store = host, disk, store
        self.copies: dict[Key, Copy] = {}
        self.of_adapter: dict[str, list[Copy]] = {}
        self.current: dict[str, Copy] = {}
        self.wants: dict[str, Assignment] = {}
        self.own: frozenset[str] = frozenset()  # wants that come from no wave: this engine published them
        self.announced: Mapping[str, Source] = {}  # what Trainer calls have published, here or elsewhere
        self.in_slots: dict[int, Copy] = {}
        self.loading: set[Copy] = set()
        self.serving = 0  # requests that use their slot
        self.awaiting = PlaceCounter[str](requests_waiting)  # requests that wait for theirs
        # Those of them that have no copy yet, because its slot is closed.
        self.awaiting_open_slot = PlaceCounter[str](requests_waiting)
        self.due: set[str] = set()  # adapters that the keeper must look at
        self._changed: set[str] = set()  # adapters to settle
        self._blocked: set[Copy] = set()
        self._held: dict[str, records.Held] = {}
        self._clock = 0

    def tick(self) -> int:
        """Return a number larger than all previous ones."""
        self._clock += 1
        return self._clock

    def copy_of(self, key: Key) -> Copy:
        """Return the copy with this key, creating it if it is new."""
        copy = self.copies.get(key)
        if copy is None:
            copy = self.copies[key] = Copy(*key)
            self.of_adapter.setdefault(copy.adapter, []).append(copy)
        return copy

    def changed(self, copy: Copy) -> None:
        """Note that a copy has changed."""
        self._changed.add(copy.adapter)

    @property
    def loads_first(self) -> bool:
        """Whether loads matter more than steps: at least as many requests wait for a load as run."""
        return self.awaiting.total >= self.serving

    def use(self, copy: Copy) -> None:
        """Mark a copy as just used, in the other tiers too, so that it is evicted from them later."""
        copy.used = self.tick()
        self.host.ledger.touch(copy.key)
        self.disk.touch(copy.source)

    def evicted(self, keys: Iterable[Key]) -> None:
        """Note that these keys have left the host tier."""
        self._changed.update(adapter for adapter, _ in keys)

    def seat(self, copy: Copy, slot: int) -> None:
        """Record that a copy has been put into a slot."""
        copy.slot, copy.used, copy.since = slot, self.tick(), time.monotonic()
        self.in_slots[slot] = copy
        self.changed(copy)

    def seat_early(self, copy: Copy, slot: int, arrival: Arrival) -> None:
        """Let requests use a slot that a copy is still arriving in, and pin the copy there until `unpin`."""
        copy.arrival = arrival
        copy.users += 1
        self.seat(copy, slot)
        if copy.usable is not None and not copy.usable.done():
            copy.usable.set_result(None)

    def unpin(self, copy: Copy) -> None:
        """End the pin of `seat_early`: the copy has arrived, or never will."""
        copy.arrival = None
        copy.users -= 1
        self.changed(copy)

    @contextmanager
    def serve(self, copy: Copy) -> Iterator[None]:
        """Count a request that uses the copy's slot, until the context ends."""
        self.serving += 1
        copy.serving += 1
        try:
            yield
        finally:
            copy.serving -= 1
            self.serving -= 1
            if copy.leaving is not None:
                copy.leaving.set()

    def unseat(self, copy: Copy) -> int | None:
        """Take a copy out of its slot and return the slot, or None if it has none."""
        slot, copy.slot, copy.for_wave = copy.slot, None, False
        copy.open()
        if slot is not None:
            del self.in_slots[slot]
            self.changed(copy)
        return slot

    def failed(self, copy: Copy, error: MintError) -> None:
        """Record that a copy's load has failed."""
        copy.failed(error, time.monotonic(), wanted=self.wanted(copy))
        self._blocked.add(copy)
        self.changed(copy)

    def tier(self, copy: Copy) -> Tier:
        """Return the warmest tier that holds a copy now."""
        if copy.slot is not None:
            return Tier.DEVICE
        if self.host.get(copy.key) is not None:
            return Tier.HOST
        return Tier.DISK if copy.revision and self.disk.holds(copy.source) else Tier.REMOTE

    def wanted(self, copy: Copy) -> bool:
        """Return whether a wave wants this adapter from this source."""
        return wanted_tier(self.wants, copy.key) is not Tier.REMOTE

    def serves_on(self, copy: Copy) -> bool:
        """Return whether a copy still serves for its source, because the source's newer state is not as warm yet."""
        if copy.formerly is None or self.tier(copy).warmth < Tier.HOST.warmth:
            return False
        successor = self.copies.get((copy.adapter, copy.formerly))
        return successor is None or not successor.revision or self.tier(successor).warmth < self.tier(copy).warmth

    def view(self, copy: Copy) -> CopyView:
        """Return a snapshot of a copy for `decide`."""
        return CopyView(
            adapter=copy.adapter,
            source=copy.source,
            tier=self.tier(copy),
            users=copy.users,
            used=copy.used,
            loading=copy.load is not None,
            blocked=copy.blocked(time.monotonic()),
            failed=copy.error is not None,
            for_wave=copy.for_wave,
            current=self.current.get(copy.adapter) is copy,
            requested=copy.requested,
        )

    def seats(self) -> list[Seat]:
        """Return the occupied slots, for `choose_closed`."""
        return [
            Seat(
                slot=slot,
                since=copy.since,
                users=copy.users,
                pinned=copy.lent or not gives_way(self.view(copy), self.wants),
                closed_at=None if copy.closed is None else copy.closed.at,
            )
            for slot, copy in self.in_slots.items()
        ]

    def picture(self, adapters: Iterable[str]) -> tuple[list[CopyView], Wants]:
        """Return snapshots of these adapters' copies, and what waves want of them."""
        names = list(adapters)
        views = [self.view(copy) for name in names for copy in self.of_adapter.get(name, ())]
        return views, {name: self.wants[name] for name in names if name in self.wants}

    def set_wants(self, wants: dict[str, Assignment], own: frozenset[str]) -> None:
        """Replace what waves want, and this engine's `own`. Failed loads are retried if the want has changed."""
        before, self.wants = self.wants, wants
        changed = {name for name in before.keys() | wants.keys() if before.get(name) != wants.get(name)}
        changed |= self.own ^ own
        self.own = own
        if not changed:
            return
        now = time.monotonic()
        for copy in (copy for name in changed for copy in self.of_adapter.get(name, ())):
            if copy.error is not None:
                copy.retry_at = 0.0 if self.wanted(copy) else min(copy.retry_at, now + FORGET_S)
                self._blocked.add(copy)
        self._changed |= changed
        self.host.ledger.keep(frozenset((w.adapter, w.source) for w in wants.values() if w.residency is Tier.HOST))
        self.disk.keep(frozenset(w.source for w in wants.values() if w.residency is Tier.DISK))

    def set_announced(self, announced: Mapping[str, Source]) -> None:
        """Replace the sources that Trainer calls have published, by name. Copies of earlier ones may be dropped."""
        before, self.announced = self.announced, announced
        changed = {name for name in before.keys() | announced.keys() if before.get(name) != announced.get(name)}
        for copy in (copy for name in changed for copy in self.of_adapter.get(name, ())):
            if copy.source == before.get(copy.adapter):
                copy.requested = False
        self._changed |= changed

    def settle(self) -> None:
        """Direct new requests to copies that have become as warm as wanted, and forget copies without further use."""
        self.evicted(self.host.take_shed())
        now = time.monotonic()
        over = {copy for copy in self._blocked if not copy.blocked(now)}
        self._blocked -= over
        self._changed.update(copy.adapter for copy in over)
        names, self._changed = self._changed, set()
        for name in names:
            self._settle(name, now)
            held = report(self._adapter_view(name))
            if held is None:
                self._held.pop(name, None)
            else:
                self._held[name] = held
        self.due |= names

    def for_request(self, adapter: str, source: Source | None = None) -> Copy:
        """Return the copy that answers a request made now. Raises AdapterNotFound.

        In order of preference: what a wave wants here, the `source` that the request names (from the catalog or
        another engine's wave), what Trainer calls have published, the adapter store. While the new state of a changed
        source is not here, its older copy answers. The request's `source` precedes what this engine has published.
        """
        want, serving = self.wants.get(adapter), self.current.get(adapter)
        if want is not None and (source in {None, want.source} or adapter not in self.own):
            known = serving is not None and (serving.load is not None or self.tier(serving) is not Tier.REMOTE)
            return serving if serving is not None and known else self.copy_of((adapter, want.source))
        copy = self._unwanted(adapter, source)
        if serving is not None and serving.formerly == copy.source and self.serves_on(serving):
            return serving
        return copy

    def _unwanted(self, adapter: str, source: Source | None) -> Copy:
        if source is None:
            source = self.announced.get(adapter)
        if source is None:
            if self.store is None:
                reason = "is not in any wave, and the base model has no adapter store"
                todo = "add it to a wave, or publish it if it is a policy"
                raise AdapterNotFound(f"adapter {adapter!r}", f"{reason}; {todo}")
            source = child(self.store, adapter)
        copy = self.copy_of((adapter, source))
        if not copy.requested:  # an earlier request may have resolved to another source
            for each in self.of_adapter[adapter]:
                each.requested = each is copy
            self.changed(copy)
        return copy

    def for_client(self, copy: Copy, error: MintError) -> MintError:
        """Return a load's error as a request must see it: an unplaced name that no store holds is unknown."""
        if isinstance(error, SourceNotFound) and not self.wanted(copy):
            reason = f"is neither in a wave nor in the adapter store ({error})"
            todo = "check its name, or publish it if it is a policy"
            return AdapterNotFound(f"adapter {copy.adapter!r}", f"{reason}; {todo}")
        return error

    def next_retry_s(self) -> float | None:
        """Return the seconds until the next failed load may be retried, or None if none may."""
        soonest = min((copy.retry_at for copy in self._blocked), default=float("inf"))
        return None if soonest == float("inf") else max(0.01, soonest - time.monotonic())

    def states(self) -> list[AdapterStatus]:
        """Return every copy that this engine holds or failed to load, sorted by adapter."""
        found = []
        for copy in self.copies.values():
            tier, failure = self.tier(copy), copy.failure
            if tier is not Tier.REMOTE or failure is not None:
                why = (failure.reason, failure.message) if failure else ("", "")
                found.append(AdapterStatus(copy.adapter, copy.revision, tier, copy.rank, copy.users, *why))
        return sorted(found, key=lambda each: each.adapter)

    def report(self) -> dict[str, records.Held]:
        """Return what the placement map must know, by adapter (see `report.report`)."""
        self.settle()
        return dict(self._held)

    def _adapter_view(self, name: str) -> AdapterView:
        return AdapterView(
            adapter=name,
            copies={copy: self.view(copy) for copy in self.of_adapter.get(name, ())},
            current=self.current.get(name),
            want=self.wants.get(name),
            announced=self.announced.get(name),
            own=name in self.own,
            store=self.store,
        )

    def _settle(self, name: str, now: float) -> None:
        want = self.wants.get(name)
        if want is None:
            serving = self.current.get(name)
            if serving is not None and not self.serves_on(serving):
                del self.current[name]
        else:
            copy = self.copies.get((name, want.source))
            if copy is not None and copy.slot is not None and want.residency is Tier.DEVICE:
                copy.for_wave = True
            if copy is not None and copy.revision and satisfied(self.view(copy), self.wants):
                self.current[name] = copy
        for copy in list(self.of_adapter.get(name, ())):
            used = copy.users or copy.load is not None or copy.blocked(now) or self.wanted(copy)
            awaited = want is None and name in self.current and copy.error is not None
            if not (used or awaited) and self.tier(copy) in {Tier.DISK, Tier.REMOTE}:
                self._forget(copy)

    def _forget(self, copy: Copy) -> None:
        if self.current.get(copy.adapter) is copy:
            del self.current[copy.adapter]
        del self.copies[copy.key]
        self._blocked.discard(copy)
        others = [each for each in self.of_adapter.pop(copy.adapter) if each is not copy]
        if others:
            self.of_adapter[copy.adapter] = others
