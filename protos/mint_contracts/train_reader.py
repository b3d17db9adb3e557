"""Reading the map's part about training: anybody may. Raises MapUnavailable when Redis does not answer in time.

Records carry what users have written, which another version of MinT may have let them write otherwise. One that
cannot be read hinders no other: it is passed over, or given as far as it can be read to who asks for that.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.functions import bounded
from mint_contracts.hashes import PER_CALL, Json, decoded, read_hashes
from mint_contracts.rewards import Rewards
from mint_contracts.training_records import (
    Order,
    PartAssignment,
    PartTraining,
    Progress,
    Stage,
    TrainAssignment,
    WaveTraining,
)

MOST_POINTS = 2000  # rewards that are read together: 10 ms of an event loop's time (by hand)


class TrainReader:
    """Reads who trains what, and how far it is."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def training(self, base: str, *, partly: bool = False) -> dict[str, WaveTraining]:
        """Every training wave of a base; `partly`: as a PartTraining where it cannot be read whole."""
        raw = await bounded(lambda: self._redis.hgetall(keys.training(base)))
        return decoded(raw, WaveTraining, _part_of_wave if partly else None)

    async def known(self, base: str) -> dict[str, WaveTraining] | None:
        """The same; None where the map was lost, or the operator has yet to complete it."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.exists(keys.version(base))
        pipeline.hgetall(keys.training(base))
        known, raw = await bounded(pipeline.execute)
        return decoded(raw, WaveTraining) if known else None

    async def trains(
        self, base: str, engines: Sequence[str], *, partly: bool = False
    ) -> dict[str, dict[str, TrainAssignment]]:
        """The leases of each of these engines; `partly`: as a PartAssignment where one cannot be read whole."""
        raws = await read_hashes(self._redis, [keys.trains(base, engine) for engine in engines])
        mend = _part_of_lease if partly else None
        return {engine: decoded(raw, TrainAssignment, mend) for engine, raw in zip(engines, raws, strict=True)}

    async def progress(
        self, base: str, engines: Sequence[str], *, partly: bool = False
    ) -> dict[str, dict[str, Progress]]:
        """What each of these engines says of its policies; `partly`: as Loading at a stage that is not known here."""
        raws = await read_hashes(self._redis, [keys.progress(base, engine) for engine in engines])
        mend = _part_of_word if partly else None
        return {engine: decoded(raw, Progress, mend) for engine, raw in zip(engines, raws, strict=True)}

    async def rewards(self, base: str, since: Mapping[str, int], most: int) -> dict[str, Rewards]:
        """The mean rewards of each policy's steps from that index on, or all where it has fewer, having begun anew.

        The last `most` of them at most. They are read in pieces, none of which holds up the event loop for long.
        """
        lengths = await self._lengths(base, list(since))
        begin = {
            policy: max(first if first <= lengths[policy] else 0, lengths[policy] - most)
            for policy, first in since.items()
        }
        values: dict[str, list[float]] = {policy: [] for policy in since}
        for pieces in _together(begin, lengths):
            pipeline = self._redis.pipeline(transaction=False)
            for policy, start, end in pieces:
                pipeline.lrange(keys.rewards(base, policy), start, end - 1)
            for (policy, *_), raw in zip(pieces, await bounded(pipeline.execute), strict=True):
                values[policy] += map(float, raw)
        return {policy: Rewards(first, tuple(values[policy])) for policy, first in begin.items()}

    async def _lengths(self, base: str, policies: Sequence[str]) -> dict[str, int]:
        found: list[int] = []
        for start in range(0, len(policies), PER_CALL):
            pipeline = self._redis.pipeline(transaction=False)
            for policy in policies[start : start + PER_CALL]:
                pipeline.llen(keys.rewards(base, policy))
            found += await bounded(pipeline.execute)
        return dict(zip(policies, found, strict=True))


def _together(begin: Mapping[str, int], lengths: Mapping[str, int]) -> Iterator[list[tuple[str, int, int]]]:
    """Pieces of lists (whose, from, up to), each so many that one round trip reads MOST_POINTS values at most."""
    pieces: list[tuple[str, int, int]] = []
    room = MOST_POINTS
    for policy, start in begin.items():
        while start < lengths[policy]:
            end = min(lengths[policy], start + room)
            pieces.append((policy, start, end))
            room -= end - start
            start = end
            if room == 0 or len(pieces) == PER_CALL:
                yield pieces
                pieces, room = [], MOST_POINTS
    if pieces:
        yield pieces


def _part_of_wave(of: Json) -> PartTraining:
    """No training, and those of the last words that can be read."""
    words = of.get("last_words")
    readable = [each for each in words if _is_word(each)] if isinstance(words, list) else []
    return msgspec.convert(of | {"train": {"policies": {}, "steps": 0}, "last_words": readable}, PartTraining)


def _is_word(of: object) -> bool:
    try:
        msgspec.convert(of, Progress)
    except msgspec.ValidationError:
        return False
    return True


def _part_of_lease(of: Json) -> PartAssignment:
    """Settings that only name the policy; an order that is not known is none to go on."""
    known = of.get("order", Order.RUN) in list(Order)
    order = {} if known else {"order": Order.PAUSE}
    return msgspec.convert(of | {"settings": {"name": of.get("policy")}} | order, PartAssignment)


def _part_of_word(of: Json) -> Progress:
    """A stage at which the engine has the policy, and nothing more is said of that."""
    return msgspec.convert(of | {"stage": Stage.LOADING}, Progress)
