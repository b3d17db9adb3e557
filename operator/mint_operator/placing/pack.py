"""Places missing copies on the least loaded engines, or on one that holds the adapter and is hardly more loaded."""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from mint_contracts.records import Place, Tier
from mint_operator.placing.hot import give_way
from mint_operator.placing.slot_exchange import make_room
from mint_operator.placing.table import Table, going, lacking
from mint_operator.planning.adapters import Want

AT_HOME = "the engine that trained it"

_COLD: Mapping[str, int] = {}


def pack(table: Table) -> None:
    """Place all missing copies."""
    for name in table.needy:
        want, places = table.wants[name], table.placed[name]
        for _ in range(lacking(table.board, want, places)):
            found = _fill(table, want, places) or make_room(table, want)
            if found is None:
                break
            table.add(name, found)


def _fill(table: Table, want: Want, places: Sequence[Place]) -> Place | None:
    """Choose the least loaded engine with room; lost engines only if no live one has room.

    A copy that must be ready before another engine is removed never goes to a lost or failing one, which would not
    get it ready.
    """
    board, warmth, lost = table.board, table.warmth.get(want.adapter, _COLD), False
    without: Collection[str] = {place.engine for place in places} if places else ()
    follows = going(board, places)
    if follows:
        without = {*without, *board.failing}
    engine = board.least(want.adapter, want.residency, without, warmth, pins=want.pins)
    if engine is None:
        engine = give_way(table, want, without)
    if engine is None and board.any_lost and not follows:
        lost = True
        engine = board.least(want.adapter, want.residency, without, warmth, lost=True, pins=want.pins)
    if engine is None:
        return None
    at_home = want.at_home and engine in want.pins
    why = AT_HOME if at_home else _least_loaded(board.loads[engine].copies, board.count, len(want.pins))
    if board.count > 1 and engine in warmth:
        why += f", and already on {next(tier for tier in Tier if tier.warmth == warmth[engine])} there"
    if board.count > 1 and lost:
        why += ", currently not ready" if at_home else ", all others being full; currently not ready"
    return Place(engine, want.residency, why, demand=table.demand.get(want.adapter, 0.0))


@lru_cache(maxsize=4096)
def _least_loaded(copies: int, engines: int, pins: int) -> str:
    """Return the reason for a choice. Cached, so that the many copies placed alike share one string."""
    if engines == 1:
        return "the only engine at the time"
    among = f"{pins} that the wave names" if pins else f"{engines} engines"
    return f"least loaded ({copies} copies) among {among}"
