"""Copies on engines that have not been ready for too long go to others, if they fit there."""

from mint_contracts.records import Place
from mint_operator.placing.hot import give_way
from mint_operator.placing.table import Table
from mint_operator.planning.adapters import Want
from mint_operator.planning.engines import AWAY_GRACE_S


def leave_lost(table: Table) -> None:
    """Move every copy that is on a lost engine; one that fits nowhere stays and waits for it."""
    if table.board.any_lost:
        for name in table.needy:
            _leave_lost(table, table.wants[name])


def _leave_lost(table: Table, want: Want) -> None:
    board, places = table.board, table.placed[want.adapter]
    for index, place in enumerate(places):
        if not board.lost(place.engine):
            continue
        without = {other.engine for other in places}
        warmth = table.warmth.get(want.adapter, {})
        target = board.least(want.adapter, want.residency, without, warmth, pins=want.pins)
        target = target or give_way(table, want, without)
        if target is not None:
            why = f"moved from {place.engine}, which has not been ready for over {AWAY_GRACE_S:.0f} s"
            demand = table.demand.get(want.adapter, 0.0)
            table.move(want.adapter, index, Place(target, want.residency, why, demand=demand))
