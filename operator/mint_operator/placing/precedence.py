"""Lets copies that found no room off a lost engine change places with copies of lower priority on ready engines.

So priority comes first among the slots that there really are, too: while an engine is away, or has yet to find a
node, adapters of the lowest priority wait for it. Each adapter keeps its number of copies, each engine that of slots.

The two may belong to tenants that must learn nothing about each other, so neither's place names the other.
"""

from bisect import insort
from itertools import takewhile
from typing import NamedTuple

from mint_contracts.records import Place, Tier
from mint_operator.placing.table import Table
from mint_operator.planning.adapters import Want


class _Copy(NamedTuple):
    """A copy in a slot of a ready engine. Those that give way first come first."""

    priority: int
    demand: float
    adapter: str
    engine: str


def put_first(table: Table) -> None:
    """Exchange copies until none waits for a lost engine that comes before one in whose slot it could be."""
    board, wants = table.board, table.wants
    if not board.any_lost:
        return
    waiting = [name for name in table.needy if wants[name].residency is Tier.DEVICE and _lost(table, name)]
    most = max((wants[name].priority for name in waiting), default=table.lowest)
    if most <= table.lowest:
        return
    lost = {table.places(name)[index].engine for name in waiting for index in _lost(table, name)}
    copies = sorted(
        _copy(table, name, engine)
        for engine, given in board.given.items()
        if board.able(engine) and engine not in board.unready
        for name, tier in given.items()
        if tier is Tier.DEVICE and wants[name].priority < most
        if not wants[name].pins or not lost.isdisjoint(wants[name].pins)
    )
    gave_way = waiting
    while gave_way:
        waiting = sorted(dict.fromkeys([*waiting, *gave_way]), key=lambda name: -wants[name].priority)
        found = [_exchange(table, wants[name], index, copies) for name in waiting for index in _lost(table, name)]
        gave_way = [name for name in found if name]
        table.needy += gave_way


def _lost(table: Table, name: str) -> list[int]:
    """Return the indices of an adapter's places on lost engines."""
    return [at for at, place in enumerate(table.places(name)) if table.board.able(place.engine, lost=True)]


def _copy(table: Table, name: str, engine: str) -> _Copy:
    return _Copy(table.wants[name].priority, table.demand.get(name, 0.0), name, engine)


def _exchange(table: Table, want: Want, index: int, copies: list[_Copy]) -> str:
    """Exchange one of an adapter's copies with the first that may; returns the other's adapter, "" if none may."""
    lost, ours = table.places(want.adapter)[index].engine, {place.engine for place in table.places(want.adapter)}
    for each in takewhile(lambda each: each.priority < want.priority, copies):
        other, theirs = table.wants[each.adapter], [place.engine for place in table.places(each.adapter)]
        if each.engine in ours or lost in theirs or not (_may(want, each.engine) and _may(other, lost)):
            continue
        why = f"made room on {each.engine} for a copy of higher priority while {lost} is away, or not ready"
        table.move(other.adapter, theirs.index(each.engine), Place(lost, Tier.DEVICE, why))
        why = f"moved from {lost}, which was away, or not ready, for too long, in place of a copy of lower priority"
        demand = table.demand.get(want.adapter, 0.0)
        table.move(want.adapter, index, Place(each.engine, Tier.DEVICE, why, demand=demand))
        copies.remove(each)
        insort(copies, _copy(table, want.adapter, each.engine))
        return other.adapter
    return ""


def _may(want: Want, engine: str) -> bool:
    return not want.pins or engine in want.pins
