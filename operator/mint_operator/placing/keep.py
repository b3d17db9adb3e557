"""What stays where it is: every place that is still allowed."""

from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.records import Place, Tier
from mint_operator.placing.board import Board
from mint_operator.planning.adapters import Want


def keep(board: Board, want: Want, before: Sequence[Place], warmth: Mapping[str, int]) -> list[Place]:
    """The existing places that stay; if there are more than wanted, those of live and warm engines.

    Those on engines that are about to go stay beside the wanted ones, until these are as warm as wanted.
    """
    there = legal(board, want, before)
    kept = [place for place in there if not board.leaving(place.engine)]
    if len(kept) > want.replicas:
        best = sorted(kept, key=lambda place: (board.lost(place.engine), -warmth.get(place.engine, 0)))
        kept = [place for place in kept if place in best[: want.replicas]]
    warm = sum(warmth.get(place.engine, 0) >= want.residency.warmth for place in kept)
    if warm < want.replicas:
        kept = [place for place in there if place in kept or board.leaving(place.engine)]
    for place in kept:
        board.put(place.engine, want.adapter, want.residency)
    return kept


def keep_within(
    board: Board, want: Want, before: Sequence[Place], kept: list[Place], warmth: Mapping[str, int], *, in_slot: bool
) -> None:
    """The same where engines are given more than they can hold, as after a limit was lowered: what fits stays.

    Two rounds: what has its slot already (`in_slot`) comes before what wants a warmer tier now.
    """
    allowed = {place.engine for place in legal(board, want, before)}
    places = [
        place
        for place in before
        if place.engine in allowed and (want.residency in (place.residency, Tier.HOST, Tier.DISK)) is in_slot
    ]
    places.sort(key=lambda place: (board.lost(place.engine), -warmth.get(place.engine, 0)))
    for place in places:
        twice = any(other.engine == place.engine for other in kept)
        if len(kept) < want.replicas and not twice and board.fits(place.engine, want.adapter, want.residency):
            board.put(place.engine, want.adapter, want.residency)
            kept.append(_as_wanted(place, want))
    kept.sort(key=lambda place: [each.engine for each in before].index(place.engine))


def legal(board: Board, want: Want, before: Sequence[Place]) -> list[Place]:
    """The places on engines that there are and that the want allows, each once."""
    found: list[Place] = []
    for place in before:
        allowed = place.engine in board and (not want.pins or place.engine in want.pins)
        if allowed and not any(other.engine == place.engine for other in found):
            found.append(_as_wanted(place, want))
    return found


def _as_wanted(place: Place, want: Want) -> Place:
    if place.residency is want.residency:
        return place
    return msgspec.structs.replace(place, residency=want.residency)
