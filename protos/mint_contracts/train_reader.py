"""Reading the map's part about training, open to everyone. Raises MapUnavailable if Redis does not answer in time.

Records contain what users have written, perhaps in a form that only another version of MinT accepts. One unreadable
record does not affect the others: it is skipped, or returned as far as possible if the caller asks for that.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.functions import bounded, call
from mint_contracts.hashes import PER_CALL, Json, decoded, read_each, read_hashes
from mint_contracts.rewards import Rewards
from mint_contracts.step_figures import Curve
from mint_contracts.training_records import (
    Order,
    PartAssignment,
    PartTraining,
    Progress,
    Stage,
    TrainAssignment,
    WaveTraining,
)

MOST_POINTS = 2000  # rewards read together: 10 ms of an event loop's time (measured by hand)


class TrainReader:
    """Reads which engines train which policies, and their progress."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def edition(self, base: str) -> int | None:
        """Return a number that grows as records of a base's waves change; read before them, it shows later changes.

        None if no change was counted yet, as of records by an earlier version.
        """
        found = await bounded(lambda: self._redis.hget(keys.editions(base), ""))
        return None if found is None else int(found)

    async def training(self, base: str, *, partly: bool = False) -> dict[str, WaveTraining]:
        """Return every training wave of a base; with `partly`, one that is not fully readable as a PartTraining."""
        raw = await bounded(lambda: self._redis.hgetall(keys.training(base)))
        return decoded(raw, WaveTraining, _part_of_wave if partly else None)

    async def some_training(self, base: str, waves: Collection[str]) -> dict[str, WaveTraining]:
        """Return those of these training waves that there are, without reading the others."""
        names, key = sorted(waves), keys.training(base)
        raws = await read_each(self._redis, names, lambda line, name: line.hget(key, name))
        return decoded({name: raw for name, raw in zip(names, raws, strict=True) if raw is not None}, WaveTraining)

    async def has_policy(self, base: str, policy: str) -> bool:
        """Return whether a training wave of a base has a policy of this name; Redis reads the waves."""
        return bool(await call(self._redis, "trained", [keys.training(base)], [policy]))

    async def known(self, base: str) -> dict[str, WaveTraining] | None:
        """Return every training wave of a base; None if the map was lost or is not complete yet."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.exists(keys.version(base))
        pipeline.hgetall(keys.training(base))
        known, raw = await bounded(pipeline.execute)
        return decoded(raw, WaveTraining) if known else None

    async def known_edition(self, base: str) -> int | None:
        """Return the `edition` of the waves that are `known`; None if either is not."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.exists(keys.version(base))
        pipeline.hget(keys.editions(base), "")
        known, edition = await bounded(pipeline.execute)
        return int(edition) if known and edition is not None else None

    async def trains(
        self, base: str, engines: Sequence[str], *, partly: bool = False
    ) -> dict[str, dict[str, TrainAssignment]]:
        """Return the leases of each engine; with `partly`, one that is not fully readable as a PartAssignment."""
        raws = await read_hashes(self._redis, [keys.trains(base, engine) for engine in engines])
        mend = _part_of_lease if partly else None
        return {engine: decoded(raw, TrainAssignment, mend) for engine, raw in zip(engines, raws, strict=True)}

    async def progress(
        self, base: str, engines: Sequence[str], *, partly: bool = False
    ) -> dict[str, dict[str, Progress]]:
        """Return each engine's reports on its policies; with `partly`, an unknown stage is returned as Loading."""
        raws = await read_hashes(self._redis, [keys.progress(base, engine) for engine in engines])
        mend = _part_of_word if partly else None
        return {engine: decoded(raw, Progress, mend) for engine, raw in zip(engines, raws, strict=True)}

    async def rewards(self, base: str, since: Mapping[str, int], most: int) -> dict[str, Rewards]:
        """Return the mean rewards of each policy's steps from the given index on; at most the last `most` of them.

        A policy that has fewer has begun again: return all of its rewards. They are read in pieces, so that the event
        loop is never held up for long.
        """
        lists = [keys.rewards(base, policy) for policy in since]
        counts = await read_each(self._redis, lists, lambda line, name: line.llen(name))
        lengths: dict[str, int] = dict(zip(since, counts, strict=True))
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

    async def curves(self, base: str, policies: Sequence[str]) -> dict[str, Curve]:
        """Return the policies' curves, as far as there are any and they can be read."""
        found: dict[str, Curve] = {}
        for start in range(0, len(policies), PER_CALL):
            pipeline = self._redis.pipeline(transaction=False)
            for policy in policies[start : start + PER_CALL]:
                pipeline.lindex(keys.curve(base, policy), 0)
            raws = zip(policies[start : start + PER_CALL], await bounded(pipeline.execute), strict=True)
            found |= decoded({policy: raw for policy, raw in raws if raw}, Curve)
        return found


def _together(begin: Mapping[str, int], lengths: Mapping[str, int]) -> Iterator[list[tuple[str, int, int]]]:
    """Yield groups of list pieces (policy, start, end), each at most MOST_POINTS values, for one round trip."""
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
    """Return the record without its training, and with the last words that can be read."""
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
    """Return the lease with settings that only name the policy; an unknown order becomes Pause."""
    known = of.get("order", Order.RUN) in list(Order)
    order = {} if known else {"order": Order.PAUSE}
    return msgspec.convert(of | {"settings": {"name": of.get("policy")}} | order, PartAssignment)


def _part_of_word(of: Json) -> Progress:
    """Return the progress with Loading as its stage: the engine has the policy, and nothing more is known."""
    return msgspec.convert(of | {"stage": Stage.LOADING}, Progress)
