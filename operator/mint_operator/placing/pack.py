"""Missing copies go to the least loaded engines, or to one that holds the adapter warm and has hardly more to do."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from mint_contracts.records import Place, Tier
from mint_operator.placing.board import Board
from mint_operator.placing.hot import give_way
from mint_operator.placing.room import make_room
from mint_operator.placing.table import Table, lacking
from mint_operator.planning.adapters import Want

_COLD: Mapping[str, int] = {}


def pack(table: Table) -> None:
    """Place whatever is missing."""
    for name in table.needy:
        want, places = table.wants[name], table.placed[name]
        for _ in range(lacking(table.board, want, places)):
            found = _fill(table, want, places) or make_room(table, want)
            if found is None:
                break
            table.add(name, found)


def _fill(table: Table, want: Want, places: Sequence[Place]) -> Place | None:
    """On the least loaded engine with room; live engines come before lost ones, which are better than none."""
    board, warmth = table.board, table.warmth.get(want.adapter, _COLD)
    without = {place.engine for place in places} if places else ()
    engine = board.least(want.adapter, want.residency, without, warmth, pins=want.pins)
    engine = engine or give_way(table, want, without)
    lost = engine is None and board.any_lost
    if lost:
        engine = board.least(want.adapter, want.residency, without, warmth, lost=True, pins=want.pins)
    if engine is None:
        return None
    why = _why(board, engine, want, warmth, lost=lost)
    return Place(engine, want.residency, why, demand=table.demand.get(want.adapter, 0.0))


def _why(board: Board, engine: str, want: Want, warmth: Mapping[str, int], *, lost: bool) -> str:
    if len(board) == 1:
        return "the only engine"
    among = f"{len(want.pins)} that the wave names" if want.pins else f"{len(board)} engines"
    why = _least_loaded(board.loads[engine].copies, among)
    if engine in warmth:
        why += f", and already on {next(tier for tier in Tier if tier.warmth == warmth[engine])} there"
    return why + (", all others being full; away now" if lost else "")


@lru_cache(maxsize=4096)
def _least_loaded(copies: int, among: str) -> str:
    """One text for the many copies that were placed alike: it is kept with each of them."""
    return f"least loaded ({copies} copies) among {among}"
