"""Decides what to load and what to release next: pure functions over a snapshot of one engine's copies."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import msgspec

from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source, child
from mint_engine.residency.host import Key


class CopyView(msgspec.Struct, frozen=True):
    """A snapshot of one copy: one adapter from one source on this engine."""

    adapter: str
    source: Source
    tier: Tier
    users: int  # requests that hold it or wait for it
    used: int  # larger: used more recently
    loading: bool
    blocked: bool  # its last load failed, and it is not yet time to try again
    for_wave: bool  # a wave has wanted it on the device since it was put there
    current: bool  # it answers new requests
    requested: bool = False  # the adapter's last request resolved to this source
    failed: bool = False  # its last load failed, and it may be time to try again

    @property
    def key(self) -> Key:
        """The key of the copy."""
        return self.adapter, self.source


class Actions(msgspec.Struct, frozen=True):
    """Copies to load, most urgent first; adapters that must wait for a free load worker, and those of them whose last
    load failed; copies to remove from their slots; and copies to remove from host memory."""

    load: tuple[tuple[Key, Tier], ...]
    wait: tuple[str, ...]
    retry: tuple[str, ...]
    vacate: tuple[Key, ...]
    drop: tuple[Key, ...]


Wants = Mapping[str, Assignment]
Urgency = tuple[float, int, int, str]


def wanted_tier(wants: Wants, key: Key) -> Tier:
    """Return the lowest tier that satisfies the waves; Remote if none wants this adapter from this source."""
    want = wants.get(key[0])
    return want.residency if want is not None and want.source == key[1] else Tier.REMOTE


def satisfied(view: CopyView, wants: Wants) -> bool:
    """Return whether the copy is at least as warm as waves want it."""
    return view.tier.warmth >= wanted_tier(wants, view.key).warmth


def stale(view: CopyView, wants: Wants, store: Source | None) -> bool:
    """Return whether the copy can answer no new request, because its adapter now comes from another source."""
    want = wants.get(view.adapter)
    if want is None:
        return not (view.requested or view.current) and (store is None or view.source != child(store, view.adapter))
    return view.source != want.source and not view.current


def decide(views: Sequence[CopyView], wants: Wants, store: Source | None, *, room: int) -> Actions:
    """Return the next steps from `views` towards `wants`; at most `room` loads may start now.

    First loads and those that failed before take turns: many that fail each time must not delay the others. A slot is
    never taken from a request: a copy in use stays until it is idle.
    """
    by_key = {view.key: view for view in views}
    firsts, retries = list[Assignment](), list[Assignment]()
    for want in wants.values():
        view = by_key.get((want.adapter, want.source))
        if view is None or not (view.loading or view.blocked or satisfied(view, wants)):
            (retries if view is not None and view.failed else firsts).append(want)
    turns = zip_longest(sorted(firsts, key=urgency), sorted(retries, key=urgency))
    loads = [want for turn in turns for want in turn if want is not None]
    waiting, again = loads[max(0, room) :], {want.adapter for want in retries}
    idle = [view for view in views if view.users == 0 and not view.loading]
    return Actions(
        load=tuple(((want.adapter, want.source), want.residency) for want in loads[: max(0, room)]),
        wait=tuple(want.adapter for want in waiting),
        retry=tuple(want.adapter for want in waiting if want.adapter in again),
        vacate=tuple(view.key for view in idle if view.tier is Tier.DEVICE and _leaves(view, wants, store)),
        drop=tuple(view.key for view in idle if view.tier is Tier.HOST and stale(view, wants, store)),
    )


def urgency(want: Assignment) -> Urgency:
    """Return the sort key of a want; the smallest is met first. Demand comes first, then the wave's priority."""
    return -want.demand, -want.priority, -want.residency.warmth, want.adapter


def _leaves(view: CopyView, wants: Wants, store: Source | None) -> bool:
    """Return whether an idle copy must leave its slot: a wave's adapter leaves with the wave.

    One that a request loaded stays until its slot is needed.
    """
    unwanted = view.for_wave and wanted_tier(wants, view.key) is not Tier.DEVICE
    replaced = view.current and view.adapter in wants and wants[view.adapter].source != view.source
    return stale(view, wants, store) or (unwanted and not replaced)


def gives_way(view: CopyView, wants: Wants) -> bool:
    """Return whether waves allow a copy's slot to be given to another adapter.

    A current copy whose replacement is not loaded yet keeps its slot, so that a failed load never stops serving.
    """
    replaced = view.current and view.adapter in wants and wants[view.adapter].residency is Tier.DEVICE
    return wanted_tier(wants, view.key) is not Tier.DEVICE and not replaced


def victim(views: Sequence[CopyView], wants: Wants) -> Key | None:
    """Return the copy whose slot to give to another adapter: the least recently used idle one that gives way."""
    idle = [view for view in views if view.tier is Tier.DEVICE and view.users == 0 and gives_way(view, wants)]
    return min(idle, key=lambda view: (view.used, view.key[0])).key if idle else None
