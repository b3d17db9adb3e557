"""Gives adapters in demand more copies than their waves ask for, in slots that nothing else wants.

Such a copy is *spare*: it does not count in admission, and gives up its slot to the first adapter that is wanted
there.
"""

from collections.abc import Collection, Mapping

import msgspec

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
    """Drop the spare copy that is least in demand and whose engine can take `want`; returns the engine's name.

    If there is none, drop a wanted copy instead that a spare one on another engine can replace at once.
    """
    if want.residency is not Tier.DEVICE:
        return None
    board, others = table.board, [name for name in reversed(table.hot) if name != want.adapter]

    def takes(engine: str) -> bool:
        return board.able(engine) and engine not in without and (not want.pins or engine in want.pins)

    for name in others:
        for index, place in enumerate(table.places(name)):
            if place.spare and takes(place.engine):
                table.drop(name, index)
                return place.engine
    for name in others:
        places = table.placed[name]
        spare = next((at for at, place in enumerate(places) if place.spare and _answers(table, name, place)), None)
        here = next((at for at, place in enumerate(places) if takes(place.engine)), None)
        if spare is not None and here is not None:
            engine, places[spare] = places[here].engine, msgspec.structs.replace(places[spare], spare=False)
            table.drop(name, here)
            return engine
    return None


def _answers(table: Table, name: str, place: Place) -> bool:
    """Whether a copy is where requests can be answered from it now."""
    warmth = table.warmth.get(name, {}).get(place.engine, 0)
    return table.board.ready(place.engine) and warmth >= place.residency.warmth
