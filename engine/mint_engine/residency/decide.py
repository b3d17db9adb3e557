"""What to load and what to let go of next: pure functions over a frozen picture of one engine's copies."""

from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source, child
from mint_engine.residency.host import Key


class CopyView(msgspec.Struct, frozen=True):
    """One adapter from one source, as it is on this engine now."""

    adapter: str
    source: Source
    tier: Tier
    users: int  # requests that hold it or wait for it
    used: int  # larger: used more recently
    loading: bool
    blocked: bool  # its last load failed, and it is not yet time to try again
    for_wave: bool  # a wave wanted it on the device since it came there
    current: bool  # new requests are answered by it
    requested: bool = False  # its adapter is taken from here, by the last request's word

    @property
    def key(self) -> Key:
        """What names a copy."""
        return self.adapter, self.source


class Actions(msgspec.Struct, frozen=True):
    """Copies to load, most urgent first, and adapters that must wait for room to load; copies to take out of their
    slots; and to take out of host memory as well."""

    load: tuple[tuple[Key, Tier], ...] = ()
    wait: tuple[str, ...] = ()
    vacate: tuple[Key, ...] = ()
    drop: tuple[Key, ...] = ()


Wants = Mapping[str, Assignment]
Urgency = tuple[float, int, int, str]


def wanted_tier(wants: Wants, key: Key) -> Tier:
    """The least tier that waves ask of a copy; Remote where none asks for this adapter from this source."""
    want = wants.get(key[0])
    return want.residency if want is not None and want.source == key[1] else Tier.REMOTE


def satisfied(view: CopyView, wants: Wants) -> bool:
    """The copy is as warm as waves want it."""
    return view.tier.warmth >= wanted_tier(wants, view.key).warmth


def stale(view: CopyView, wants: Wants, store: Source | None) -> bool:
    """No new request can be answered by the copy: its adapter is now taken from elsewhere."""
    want = wants.get(view.adapter)
    if want is None:
        return not (view.requested or view.current) and (store is None or view.source != child(store, view.adapter))
    return view.source != want.source and not view.current


def decide(views: Sequence[CopyView], wants: Wants, store: Source | None, *, room: int) -> Actions:
    """The next steps from `views` towards `wants`; at most `room` loads may start now.

    A slot is never taken from a request: what is in use stays until it is idle.
    """
    by_key = {view.key: view for view in views}
    loads = []
    for want in wants.values():
        view = by_key.get((want.adapter, want.source))
        if view is None or not (view.loading or view.blocked or satisfied(view, wants)):
            loads.append(want)
    loads.sort(key=urgency)
    idle = [view for view in views if view.users == 0 and not view.loading]
    return Actions(
        load=tuple(((want.adapter, want.source), want.residency) for want in loads[: max(0, room)]),
        wait=tuple(want.adapter for want in loads[max(0, room) :]),
        vacate=tuple(view.key for view in idle if view.tier is Tier.DEVICE and _leaves(view, wants, store)),
        drop=tuple(view.key for view in idle if view.tier is Tier.HOST and stale(view, wants, store)),
    )


def urgency(want: Assignment) -> Urgency:
    """Which of two wants is met first: the smaller. What is in demand, then what comes first among waves."""
    return -want.demand, -want.priority, -want.residency.warmth, want.adapter


def _leaves(view: CopyView, wants: Wants, store: Source | None) -> bool:
    """A wave's adapter leaves its slot with the wave; one loaded by a request stays until its slot is needed."""
    unwanted = view.for_wave and wanted_tier(wants, view.key) is not Tier.DEVICE
    replaced = view.current and view.adapter in wants and wants[view.adapter].source != view.source
    return stale(view, wants, store) or (unwanted and not replaced)


def gives_way(view: CopyView, wants: Wants) -> bool:
    """Whether a copy's slot may become another adapter's while waves want what they want.

    A current copy whose replacement is still to come keeps its slot, so that a failed load never stops serving.
    """
    replaced = view.current and view.adapter in wants and wants[view.adapter].residency is Tier.DEVICE
    return wanted_tier(wants, view.key) is not Tier.DEVICE and not replaced


def victim(views: Sequence[CopyView], wants: Wants) -> Key | None:
    """Whose slot to take for another adapter: the least recently used of those that are idle and give way."""
    idle = [view for view in views if view.tier is Tier.DEVICE and view.users == 0 and gives_way(view, wants)]
    return min(idle, key=lambda view: (view.used, view.key[0])).key if idle else None
