"""Moves another adapter to make room, if only engines that an adapter cannot use have some: one move per copy.

The two may belong to tenants that must learn nothing about each other, so neither's place names the other.
"""

from collections.abc import Sequence

from mint_contracts.records import Place, Tier
from mint_operator.placing.table import Table, going
from mint_operator.planning.adapters import Want


def make_room(table: Table, want: Want) -> Place | None:
    """Move another adapter off an engine that could take a copy of `want`, and return the place that this opens.

    If any slot is free, there is one to move: a full engine holds more other adapters than one with a free slot.
    """
    board, places = table.board, table.placed[want.adapter]
    if want.residency is not Tier.DEVICE or board.least(want.adapter, Tier.DEVICE, (), {}) is None:
        return None
    if board.failing and going(board, places):  # the room may be on an engine that serves nothing
        return None
    ours = {place.engine for place in places}
    for engine in want.pins or sorted(board.loads, key=board.ordinal):
        if engine in ours or engine not in board or board.lost(engine):
            continue
        if _move_one(table, engine, want):
            why = "the only engines without a copy were full; another adapter made room here"
            return Place(engine=engine, residency=Tier.DEVICE, why=why)
    return None


def _move_one(table: Table, engine: str, want: Want) -> bool:
    """Move the adapter of lowest priority that fits elsewhere off this engine; returns whether there is one."""
    board = table.board
    for other in sorted(board.given.get(engine, ()), key=lambda name: _need(table.wants[name]), reverse=True):
        need = table.wants[other]
        if need.residency is not Tier.DEVICE or other == want.adapter:
            continue
        places = table.places(other)
        target = _elsewhere(table, need, places)
        if target is not None:
            why = f"made room on {engine} for a copy of another adapter"
            index = next(index for index, place in enumerate(places) if place.engine == engine)
            table.move(other, index, Place(engine=target, residency=Tier.DEVICE, why=why))
            return True
    return False


def _elsewhere(table: Table, need: Want, places: Sequence[Place]) -> str | None:
    without = {place.engine for place in places}
    return table.board.least(need.adapter, Tier.DEVICE, without, {}, pins=need.pins)


def _need(want: Want) -> tuple[int, str]:
    return -want.priority, want.adapter
