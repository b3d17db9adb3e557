"""Moves copies off engines that have been away or not ready for too long, if they fit on others.

Ready engines come first: one that is still starting may soon be lost, too, and the copies would move again.
"""

from collections.abc import Collection

from mint_contracts.records import Place
from mint_operator.placing.hot import give_way
from mint_operator.placing.table import Table
from mint_operator.planning.adapters import Want


def leave_lost(table: Table) -> None:
    """Move every copy that is on a lost engine; one that fits nowhere stays and waits for that engine."""
    if table.board.any_lost:
        for name in table.needy:
            _leave_lost(table, table.wants[name])


def _leave_lost(table: Table, want: Want) -> None:
    board, places = table.board, table.placed[want.adapter]
    for index, place in enumerate(places):
        if not board.lost(place.engine):
            continue
        without = {other.engine for other in places}
        target = _target(table, want, without | board.unready)
        if target is None and board.unready:
            target = _target(table, want, without)
        if target is not None:
            why = f"moved from {place.engine}, which was away, or not ready, for too long"
            demand = table.demand.get(want.adapter, 0.0)
            table.move(want.adapter, index, Place(target, want.residency, why, demand=demand))


def _target(table: Table, want: Want, without: Collection[str]) -> str | None:
    """Return an engine not in `without` that has room, or whose spare copy gives way; None if there is none."""
    warmth = table.warmth.get(want.adapter, {})
    target = table.board.least(want.adapter, want.residency, without, warmth, pins=want.pins)
    return target or give_way(table, want, without)
