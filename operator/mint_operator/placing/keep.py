"""Decides which copies stay where they are: those in every place that is still allowed."""

from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.records import Place, Tier
from mint_operator.placing.board import Board
from mint_operator.placing.target import target
from mint_operator.planning.adapters import Want


def keep(
    board: Board, want: Want, before: Sequence[Place], warmth: Mapping[str, int], requests: float = 0.0
) -> list[Place]:
    """Return the existing places that stay; if there are more than wanted, those on live and warm engines.

    An adapter with `requests` in flight may keep more, as spare copies. Copies on engines that are about to be
    removed stay beside the wanted ones until those are as warm as wanted.
    """
    there = legal(board, want, before)
    kept = there
    if len(there) > want.replicas:
        kept = _best(board, want, [place for place in there if not board.leaving(place.engine)], warmth, requests)
        if sum(warmth.get(place.engine, 0) >= want.residency.warmth for place in kept) < want.replicas:
            by_engine = {place.engine: place for place in kept}
            kept = [
                by_engine.get(place.engine, place)
                for place in there
                if place.engine in by_engine or board.leaving(place.engine)
            ]
    elif any(place.spare for place in there):
        kept = [msgspec.structs.replace(place, spare=False) if place.spare else place for place in there]
    for place in kept:
        board.put(place.engine, want.adapter, want.residency)
    return kept


def _best(
    board: Board, want: Want, places: Sequence[Place], warmth: Mapping[str, int], requests: float
) -> list[Place]:
    """Pick the wanted number of places, live, not spare and warm ones first, and spare ones that are in demand."""
    most = target(want, requests, len(places))

    def rank(place: Place) -> tuple[bool, bool, int]:
        return board.lost(place.engine), place.spare, -warmth.get(place.engine, 0)

    ranked = [place.engine for place in sorted(places, key=rank)]
    wanted, spare = set(ranked[: want.replicas]), set(ranked[want.replicas : most])
    return [
        place if place.spare is (place.engine in spare) else msgspec.structs.replace(place, spare=not place.spare)
        for place in places
        if place.engine in wanted or (place.engine in spare and not board.lost(place.engine))
    ]


def keep_within(
    board: Board, want: Want, before: Sequence[Place], kept: list[Place], warmth: Mapping[str, int], *, in_slot: bool
) -> None:
    """Add to `kept` the places that fit, when engines are given more than they can hold, as after a lowered limit.

    Called in two rounds: for copies that need no new slot (`in_slot`), then for those that do.
    """
    allowed = {place.engine for place in legal(board, want, before)}
    places = [
        place
        for place in before
        if place.engine in allowed and (want.residency in (place.residency, Tier.HOST, Tier.DISK)) is in_slot
    ]
    places.sort(key=lambda place: (board.lost(place.engine), place.spare, -warmth.get(place.engine, 0)))
    for place in places:
        twice = any(other.engine == place.engine for other in kept)
        if len(kept) < want.replicas and not twice and board.fits(place.engine, want.adapter, want.residency):
            board.put(place.engine, want.adapter, want.residency)
            kept.append(msgspec.structs.replace(_as_wanted(place, want), spare=False))
    kept.sort(key=lambda place: [each.engine for each in before].index(place.engine))


def keep_spare(board: Board, want: Want, before: Sequence[Place], kept: list[Place], requests: float) -> None:
    """After `keep_within`, also keep the spare copies that still fit and are still in demand."""
    for place in legal(board, want, before):
        twice = any(other.engine == place.engine for other in kept)
        enough = len(kept) >= target(want, requests, len(before))
        if not place.spare or twice or enough or len(kept) < want.replicas or not board.able(place.engine):
            continue
        if board.fits(place.engine, want.adapter, want.residency):
            board.put(place.engine, want.adapter, want.residency)
            kept.append(place)


def legal(board: Board, want: Want, before: Sequence[Place]) -> list[Place]:
    """Return the places on engines that exist and that the want allows, one per engine."""
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
