"""The books of one engine's residency: its copies, what waves want of them, and which of them answer new requests.

No I/O and no waiting: only the event loop's thread uses it, and every method leaves the books right.
"""

import time

from mint_contracts import records
from mint_contracts.errors import AdapterNotFound, Internal, MintError, SourceNotFound
from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source, child
from mint_engine.copies import FORGET_S, Copy
from mint_engine.decide import CopyView, satisfied, stale, wanted_tier
from mint_engine.disk import DiskTier
from mint_engine.holding import AdapterStatus
from mint_engine.host import HostTier, Key
from mint_engine.loading import is_local


class Books:
    """All copies by key, the wants by adapter, and the current copy of each wanted adapter."""

    def __init__(self, host: HostTier, disk: DiskTier, store: Source | None) -> None:
        self.host, self.disk, self.store = host, disk, store
        self.copies: dict[Key, Copy] = {}
        self.current: dict[str, Copy] = {}
        self.wants: dict[str, Assignment] = {}
        self._clock = 0

    def tick(self) -> int:
        """A number larger than all before."""
        self._clock += 1
        return self._clock

    def copy_of(self, key: Key) -> Copy:
        """The copy of that name, entered if it is new."""
        return self.copies.setdefault(key, Copy(*key))

    def tier(self, copy: Copy) -> Tier:
        """Where a copy is now, at its warmest."""
        if copy.slot is not None:
            return Tier.DEVICE
        if copy.key in self.host.ledger:
            return Tier.HOST
        on_disk = self.wanted(copy) if is_local(copy.source) else copy.source in self.disk.ledger
        return Tier.DISK if copy.revision and on_disk else Tier.REMOTE

    def wanted(self, copy: Copy) -> bool:
        """A wave wants this adapter from this source."""
        return wanted_tier(self.wants, copy.key) is not Tier.REMOTE

    def view(self, copy: Copy) -> CopyView:
        """A copy as the decisions see it."""
        return CopyView(
            adapter=copy.adapter,
            source=copy.source,
            tier=self.tier(copy),
            users=copy.users,
            used=copy.used,
            loading=copy.load is not None,
            blocked=copy.blocked(time.monotonic()),
            for_wave=copy.for_wave,
            current=self.current.get(copy.adapter) is copy,
        )

    def set_wants(self, wants: dict[str, Assignment]) -> None:
        """Replace what waves want. What failed is tried anew where the want changed."""
        before, self.wants = self.wants, wants
        changed = {name for name in before.keys() | wants.keys() if before.get(name) != wants.get(name)}
        now = time.monotonic()
        for copy in self.copies.values():
            if copy.adapter in changed and copy.error is not None:
                copy.retry_at = 0.0 if self.wanted(copy) else min(copy.retry_at, now + FORGET_S)
        self.host.ledger.keep(frozenset((w.adapter, w.source) for w in wants.values() if w.residency is Tier.HOST))
        self.disk.ledger.keep(frozenset(w.source for w in wants.values() if w.residency is Tier.DISK))

    def settle(self) -> None:
        """Let new requests go to what has become as warm as wanted, and forget what is of no use any more."""
        now = time.monotonic()
        self.current = {name: copy for name, copy in self.current.items() if name in self.wants}
        for want in self.wants.values():
            copy = self.copies.get((want.adapter, want.source))
            if copy is not None and copy.slot is not None and want.residency is Tier.DEVICE:
                copy.for_wave = True
            if copy is not None and copy.revision and satisfied(self.view(copy), self.wants):
                self.current[want.adapter] = copy
        for key, copy in list(self.copies.items()):
            idle = copy.users == 0 and copy.load is None and copy.slot is None
            if idle and not self.wanted(copy) and self.tier(copy) is Tier.REMOTE and not copy.blocked(now):
                if self.current.get(copy.adapter) is copy:
                    del self.current[copy.adapter]
                del self.copies[key]

    def for_request(self, adapter: str) -> Copy:
        """The copy that a request made now is answered by. Raises AdapterNotFound."""
        want, serving = self.wants.get(adapter), self.current.get(adapter)
        if want is not None:
            known = serving is not None and (serving.load is not None or self.tier(serving) is not Tier.REMOTE)
            return serving if serving is not None and known else self.copy_of((adapter, want.source))
        if self.store is None:
            raise AdapterNotFound(
                f"adapter {adapter!r}", "is in no wave, and the base model has no adapter store; add it to a wave"
            )
        return self.copy_of((adapter, child(self.store, adapter)))

    def for_client(self, copy: Copy, error: MintError) -> MintError:
        """A load's error as a request must see it: a name that nobody placed and no store holds is unknown."""
        if isinstance(error, SourceNotFound) and not self.wanted(copy):
            return AdapterNotFound(
                f"adapter {copy.adapter!r}", f"is in no wave and not in the adapter store ({error}); check its name"
            )
        return error

    def next_retry_s(self) -> float | None:
        """Seconds until a remembered failure ends; None when none will."""
        now = time.monotonic()
        soonest = min((copy.retry_at for copy in self.copies.values() if copy.blocked(now)), default=float("inf"))
        return None if soonest == float("inf") else max(0.01, soonest - now)

    def states(self) -> list[AdapterStatus]:
        """Every copy that this engine holds or failed to hold, sorted by adapter."""
        found = []
        for copy in self.copies.values():
            tier, failure = self.tier(copy), copy.failure
            if tier is not Tier.REMOTE or failure is not None:
                why = (failure.reason, failure.message) if failure else ("", "")
                found.append(AdapterStatus(copy.adapter, copy.revision, tier, copy.rank, copy.users, *why))
        return sorted(found, key=lambda each: each.adapter)

    def report(self) -> dict[str, records.Held]:
        """What the map must know, by adapter: what new requests get.

        Where a wave's source failed to load while an older revision serves on, the wave's source is told with that
        failure, and with the tier and revision that do serve: the wave is not Ready, and requests still find it here.
        Failures of adapters that no wave wants are left out: anybody can ask for a name that does not exist.
        """
        told: dict[str, records.Held] = {}
        for copy in self.copies.values():
            if self.tier(copy) is not Tier.REMOTE and not stale(self.view(copy), self.wants, self.store):
                told[copy.adapter] = self._held(copy, copy.source, None)
        for want in self.wants.values():
            target, serving = self.copies.get((want.adapter, want.source)), self.current.get(want.adapter)
            shown = serving if serving is not None and self.tier(serving) is not Tier.REMOTE else target
            failure = target.failure if target is not None else None
            if shown is not None and (self.tier(shown) is not Tier.REMOTE or failure is not None):
                told[want.adapter] = self._held(shown, want.source if failure else shown.source, failure)
        return told

    def _held(self, copy: Copy, source: Source, failure: records.Failure | None) -> records.Held:
        return records.Held(copy.adapter, source, self.tier(copy), copy.revision, copy.rank, failure)

    def check(self, free_slots: list[int], slots: int) -> None:
        """Raise Internal unless every slot belongs to at most one copy, and both memory budgets are kept."""
        taken = [copy.slot for copy in self.copies.values() if copy.slot is not None]
        every = taken + free_slots
        if len(set(every)) != len(every) or not set(every) <= set(range(slots)):
            raise Internal(
                "residency", f"slots are entered wrongly: taken {sorted(taken)}, free {sorted(free_slots)}"
            )
        for name, ledger in (("host", self.host.ledger), ("disk", self.disk.ledger)):
            if ledger.used > ledger.budget:
                raise Internal("residency", f"the {name} tier holds {ledger.used} bytes of {ledger.budget}")
