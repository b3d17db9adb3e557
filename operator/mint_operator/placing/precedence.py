"""Lets copies that found no room off a lost engine change places with copies of lower priority on ready engines.

So priority comes first among the slots that there really are, too: while an engine is away, or has yet to find a
node, adapters of the lowest priority wait for it. Each adapter keeps its number of copies, each engine that of slots.

The two may belong to tenants that must learn nothing about each other, so neither's place names the other.
"""

from collections.abc import Collection
from functools import cache
from itertools import takewhile
from typing import NamedTuple

from mint_contracts.records import Place, Tier
from mint_operator.placing.lost import leave_lost
from mint_operator.placing.pack import pack
from mint_operator.placing.table import Table
from mint_operator.planning.adapters import Want


class _Copy(NamedTuple):
    """A copy in a slot of a ready engine. Those that give way first come first."""

    priority: int
    demand: float
    adapter: str
    engine: str


def put_first(table: Table) -> None:
    """Exchange copies until none waits for a lost engine that comes before one in whose slot it could be.

    After each round, what gave way may fit elsewhere, and an adapter that lacks a copy may have it on the lost
    engine, where it has none any more.
    """
    while table.board.any_lost and (gave_way := _exchange(table)):
        table.needy = list(dict.fromkeys([*table.needy, *gave_way]))
        leave_lost(table)
        pack(table)


def _exchange(table: Table) -> list[str]:
    """Let each waiting copy change places with the first that may, those of highest priority first.

    Returns the adapters that gave way.
    """
    wants, gave_way = [table.wants[name] for name in table.needy], list[str]()
    waiting = [
        (want, index, place.engine)
        for want in sorted(wants, key=lambda want: -want.priority)
        if want.residency is Tier.DEVICE and want.priority > table.lowest
        for index, place in enumerate(table.places(want.adapter))
        if table.board.able(place.engine, lost=True)
    ]

    @cache
    def lower(pins: tuple[str, ...]) -> list[_Copy]:
        return _lower(table, waiting[0][0].priority, pins)

    @cache
    def candidates(lost: str, pins: tuple[str, ...]) -> list[_Copy]:
        return [each for each in lower(pins) if _may_go(table, each, lost)]

    for want, index, lost in waiting:
        other = _first(table, want, lost, candidates(lost, want.pins))
        if other is not None:
            _swap(table, want, index, other)
            gave_way.append(other.adapter)
    return gave_way


def _lower(table: Table, priority: int, engines: Collection[str]) -> list[_Copy]:
    """Return the copies of lower priority on those of these engines (none: of all) that are ready, the first last."""
    board, wants, demand = table.board, table.wants, table.demand
    return sorted(
        (
            _Copy(wants[name].priority, demand.get(name, 0.0), name, engine)
            for engine in engines or board.given
            if board.ready(engine)
            for name, tier in board.given.get(engine, {}).items()
            if tier is Tier.DEVICE and wants[name].priority < priority
        ),
        reverse=True,
    )


def _may_go(table: Table, copy: _Copy, lost: str) -> bool:
    """Whether a copy is still where it was, and its adapter may have it on a lost engine instead."""
    given, pins = table.board.given, table.wants[copy.adapter].pins
    return copy.adapter in given[copy.engine] and copy.adapter not in given[lost] and (not pins or lost in pins)


def _first(table: Table, want: Want, lost: str, copies: list[_Copy]) -> _Copy | None:
    """Return the first of these with which `want` may change places; forget those that have done so since."""
    while copies and not _may_go(table, copies[-1], lost):
        copies.pop()
    for each in takewhile(lambda each: each.priority < want.priority, reversed(copies)):
        if want.adapter not in table.board.given[each.engine] and _may_go(table, each, lost):
            return each
    return None


def _swap(table: Table, want: Want, index: int, other: _Copy) -> None:
    """Exchange an adapter's copy, on a lost engine, with another adapter's."""
    lost, engine = table.places(want.adapter)[index].engine, other.engine
    at = next(at for at, place in enumerate(table.places(other.adapter)) if place.engine == engine)
    why = f"made room on {engine} for a copy of higher priority while {lost} is away, or not ready"
    table.move(other.adapter, at, Place(lost, Tier.DEVICE, why))
    why = f"moved from {lost}, which was away, or not ready, for too long, in place of a copy of lower priority"
    table.move(want.adapter, index, Place(engine, Tier.DEVICE, why, demand=table.demand.get(want.adapter, 0.0)))
