"""Gives adapters in demand more copies than their waves ask for, in slots that nothing else wants.

Such a copy is *spare*: it does not count in admission, and gives up its slot to the first adapter that is wanted
there.
"""

from collections.abc import Collection, Mapping

from mint_contracts.records import Place, Tier
from mint_operator.placing.table import Table
from mint_operator.placing.target import KEPT, target
from mint_operator.planning.adapters import Want


def hot(demand: Mapping[str, float], wants: Mapping[str, Want]) -> list[str]:
    """Return the adapters that may have spare copies, those most in demand first."""
    names = [
        name
        for name, requests in demand.items()
        if requests >= KEPT and (want := wants.get(name)) is not None and want.residency is Tier.DEVICE
    ]
    return sorted(names, key=lambda name: (-demand[name], name))


def spread_hot(table: Table) -> None:
    """Add spare copies of adapters in demand, as far as there is room."""
    for name in table.hot:
        want, places = table.wants[name], table.placed[name]
        if len(places) < want.replicas:
            continue
        requests = table.demand[name]
        while len(places) < target(want, requests, len(places)):
            without = {place.engine for place in places}
            engine = table.board.least(name, Tier.DEVICE, without, table.warmth.get(name, {}), pins=want.pins)
            if engine is None:
                break
            why = f"in demand: {requests:.0f} requests in flight"
            table.add(name, Place(engine, Tier.DEVICE, why, spare=True, demand=requests))


def give_way(table: Table, want: Want, without: Collection[str]) -> str | None:
    """Drop the spare copy that is least in demand and whose engine can take `want`; returns the engine's name."""
    if want.residency is not Tier.DEVICE:
        return None
    for name in reversed(table.hot):
        for index, place in enumerate(table.places(name)):
            ours = name == want.adapter or place.engine in without
            allowed = table.board.able(place.engine) and (not want.pins or place.engine in want.pins)
            if place.spare and allowed and not ours:
                table.drop(name, index)
                return place.engine
    return None
