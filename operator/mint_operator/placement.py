"""Which engines hold which adapters: as little movement as can be, then as even a spread as can be.

Pure. The order of decisions, each stated in the `why` of a place:
1. A place that is still allowed stays.
2. A place on a lost engine goes to another if it fits there.
3. A missing copy goes to the engine with fewest copies, then to one that already holds the adapter warm.
4. If only engines that hold a copy have slots left, one other adapter makes room.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.records import Place, Tier
from mint_operator.adapters import Want
from mint_operator.board import Board
from mint_operator.engines import AWAY_GRACE_S, Engine

Places = Mapping[str, tuple[Place, ...]]


def place(engines: Sequence[Engine], slots: int, wants: Mapping[str, Want], existing: Places) -> Places:
    """Places of every want, in the order of `wants`; fewer than asked for only if there are too few engines."""
    board = Board(engines, slots)
    holders = _holders(engines, wants)
    placed: dict[str, list[Place]] = {name: [] for name in wants}
    for in_slot in (True, False):  # what has its slot already comes before what wants a warmer tier now
        for name, want in wants.items():
            _keep(board, want, existing.get(name, ()), placed[name], holders.get(name, {}), in_slot=in_slot)
    for name, want in wants.items():
        warmth = holders.get(name, {})
        _leave_lost(board, want, placed[name], warmth)
        while len(placed[name]) < want.replicas:
            found = _fill(board, want, placed[name], warmth) or _make_room(board, want, placed, wants)
            if found is None:
                break
            placed[name].append(found)
    return {name: tuple(places) for name, places in placed.items()}


def adopted(engines: Sequence[Engine], wants: Mapping[str, Want]) -> Places:
    """Where engines hold what is wanted already: what stands in for existing places when the map was lost."""
    found = {}
    for name, holders in _holders(engines, wants).items():
        enough = sorted(engine for engine, warmth in holders.items() if warmth >= wants[name].residency.warmth)
        if enough:
            why = "held here when the placement map was lost"
            found[name] = tuple(Place(engine=engine, residency=wants[name].residency, why=why) for engine in enough)
    return found


def _holders(engines: Sequence[Engine], wants: Mapping[str, Want]) -> dict[str, dict[str, int]]:
    """Adapter -> engine -> warmth, of what live engines hold from the wanted source."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for engine in engines:
        for name, held in engine.held.items():
            want = wants.get(name)
            if want is not None and held.source == want.source and held.tier.warmth > 0:
                found[name][engine.name] = held.tier.warmth
    return found


def _keep(
    board: Board, want: Want, before: Sequence[Place], kept: list[Place], warmth: Mapping[str, int], *, in_slot: bool
) -> None:
    """Add to `kept` the existing places that stay; if there are more than wanted, those of live and warm engines."""
    legal = [
        place
        for place in before
        if place.engine in board and (want.residency in (place.residency, Tier.HOST, Tier.DISK)) is in_slot
    ]
    legal.sort(key=lambda place: (board.lost(place.engine), -warmth.get(place.engine, 0)))
    for place in legal:
        twice = any(other.engine == place.engine for other in kept)
        if len(kept) < want.replicas and not twice and board.fits(place.engine, want.residency):
            board.put(place.engine, want.residency)
            kept.append(msgspec.structs.replace(place, residency=want.residency))
    kept.sort(key=lambda place: [each.engine for each in before].index(place.engine))


def _leave_lost(board: Board, want: Want, places: list[Place], warmth: Mapping[str, int]) -> None:
    for index, place in enumerate(places):
        if not board.lost(place.engine):
            continue
        without = {other.engine for other in places}
        target = board.least(want.residency, without, warmth, lost=False)
        if target is None:
            continue
        board.take(place.engine, want.residency)
        board.put(target, want.residency)
        why = f"moved from {place.engine}, which has been away for over {AWAY_GRACE_S:.0f} s"
        places[index] = Place(engine=target, residency=want.residency, why=why)


def _fill(board: Board, want: Want, places: Sequence[Place], warmth: Mapping[str, int]) -> Place | None:
    without = {place.engine for place in places}
    for lost in (False, True):
        engine = board.least(want.residency, without, warmth, lost=lost)
        if engine is not None:
            why = _why(board, engine, warmth, lost=lost)
            board.put(engine, want.residency)
            return Place(engine=engine, residency=want.residency, why=why)
    return None


def _why(board: Board, engine: str, warmth: Mapping[str, int], *, lost: bool) -> str:
    if len(board) == 1:
        return "the only engine"
    why = f"fewest copies ({board.copies(engine)}) among {len(board)} engines"
    if engine in warmth:
        why += f", and already on {next(tier for tier in Tier if tier.warmth == warmth[engine])} there"
    return why + (", all others being full; away now" if lost else "")


def _make_room(board: Board, want: Want, placed: dict[str, list[Place]], wants: Mapping[str, Want]) -> Place | None:
    """Move another adapter from an engine without a copy of ours to one that has both our copy and a free slot.

    There is always one to move: the full engine holds more other adapters than the one with the free slot.
    """
    ours = [place.engine for place in placed[want.adapter]]
    able = (engine for engine in ours if board.fits(engine, want.residency) and not board.lost(engine))
    target = next(able, None)
    if target is None:
        return None
    for other in reversed(placed):
        places = placed[other]
        if other == want.adapter or wants[other].residency is not Tier.DEVICE:
            continue
        if any(place.engine == target for place in places):
            continue
        for index, place in enumerate(places):
            if place.engine in ours:
                continue
            board.take(place.engine, Tier.DEVICE)
            board.put(target, Tier.DEVICE)
            why = f"made room on {place.engine} for a copy of {want.adapter}"
            places[index] = Place(engine=target, residency=Tier.DEVICE, why=why)
            board.put(place.engine, want.residency)
            reason = f"the only engines without a copy were full; {other} made room here"
            return Place(engine=place.engine, residency=want.residency, why=reason)
    return None
