"""Reading the map's part about training: anybody may. Raises MapUnavailable when Redis does not answer in time.

Records carry what users have written, which another version of MinT may have let them write otherwise. One that
cannot be read hinders no other: it is passed over, or given as far as it can be read to who asks for that.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.functions import bounded
from mint_contracts.training_records import (
    Order,
    PartAssignment,
    PartTraining,
    Progress,
    Stage,
    TrainAssignment,
    TrainState,
    WaveTraining,
)

HASHES_PER_CALL = 100

_Json = dict[str, Any]
T = TypeVar("T")


class TrainReader:
    """Reads who trains what, and how far it is."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def training(self, base: str, *, partly: bool = False) -> dict[str, WaveTraining]:
        """Every training wave of a base; `partly`: as a PartTraining where it cannot be read whole."""
        raw = await bounded(lambda: self._redis.hgetall(keys.training(base)))
        found = _decoded(raw, WaveTraining)
        if partly and len(found) < len(raw):
            found |= _parts(raw, found, PartTraining, _of_wave)
        return found

    async def known(self, base: str) -> dict[str, WaveTraining] | None:
        """The same; None where the map was lost, or the operator has yet to complete it."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.exists(keys.version(base))
        pipeline.hgetall(keys.training(base))
        known, raw = await bounded(pipeline.execute)
        return _decoded(raw, WaveTraining) if known else None

    async def wave(self, base: str, name: str) -> WaveTraining | None:
        """One training wave; None if the map does not know it, or it cannot be read."""
        raw = await bounded(lambda: self._redis.hget(keys.training(base), name))
        return None if raw is None else _decoded({name: raw}, WaveTraining).get(name)

    async def trains(
        self, base: str, engines: Sequence[str], *, partly: bool = False
    ) -> dict[str, dict[str, TrainAssignment]]:
        """The leases of each of these engines; `partly`: as a PartAssignment where one cannot be read whole."""
        raws = await self._hashes([keys.trains(base, engine) for engine in engines])
        found = {engine: _decoded(raw, TrainAssignment) for engine, raw in zip(engines, raws, strict=True)}
        for engine, raw in zip(engines, raws, strict=True):
            if partly and len(found[engine]) < len(raw):
                found[engine] |= _parts(raw, found[engine], PartAssignment, _of_lease)
        return found

    async def progress(
        self, base: str, engines: Sequence[str], *, partly: bool = False
    ) -> dict[str, dict[str, Progress]]:
        """What each of these engines says of its policies; `partly`: as Loading at a stage that is not known here."""
        raws = await self._hashes([keys.progress(base, engine) for engine in engines])
        found = {engine: _decoded(raw, Progress) for engine, raw in zip(engines, raws, strict=True)}
        for engine, raw in zip(engines, raws, strict=True):
            if partly and len(found[engine]) < len(raw):
                found[engine] |= _parts(raw, found[engine], Progress, _of_word)
        return found

    async def state(self, base: str, engines: Sequence[str]) -> TrainState:
        """All of it, over these engines."""
        return TrainState(
            training=await self.training(base),
            trains=await self.trains(base, engines),
            progress=await self.progress(base, engines),
        )

    async def rewards(self, base: str, policies: Sequence[str], most: int) -> dict[str, list[float]]:
        """The mean rewards of each policy's last `most` steps, the oldest first."""
        found: list[list[str]] = []
        for start in range(0, len(policies), HASHES_PER_CALL):
            pipeline = self._redis.pipeline(transaction=False)
            for policy in policies[start : start + HASHES_PER_CALL]:
                pipeline.lrange(keys.rewards(base, policy), -most, -1)
            found += await bounded(pipeline.execute)
        return {policy: [float(each) for each in raw] for policy, raw in zip(policies, found, strict=True)}

    async def _hashes(self, names: Sequence[str]) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        for start in range(0, len(names), HASHES_PER_CALL):
            pipeline = self._redis.pipeline(transaction=False)
            for name in names[start : start + HASHES_PER_CALL]:
                pipeline.hgetall(name)
            found += await bounded(pipeline.execute)
        return found


def _decoded(raw: Mapping[str, str], kind: type[T]) -> dict[str, T]:
    """Those that can be read."""
    found = {}
    for name, text in raw.items():
        try:
            found[name] = msgspec.json.decode(text, type=kind)
        except msgspec.ValidationError:
            continue
    return found


def _parts(
    raw: Mapping[str, str], read: Mapping[str, object], kind: type[T], instead: Callable[[_Json], _Json]
) -> dict[str, T]:
    """Of those that were not `read` whole, what can be read with this `instead` of what may be written otherwise."""
    found = {}
    for name, text in raw.items():
        if name not in read:
            of = msgspec.json.decode(text)
            try:
                found[name] = msgspec.convert(of | instead(of), kind)
            except msgspec.ValidationError:
                continue
    return found


def _of_wave(of: _Json) -> _Json:
    """No training, and those of the last words that can be read."""
    words = of.get("last_words", [])
    return {"train": {"policies": {}, "steps": 0}, "last_words": [each for each in words if _is_word(each)]}


def _is_word(of: object) -> bool:
    try:
        msgspec.convert(of, Progress)
    except msgspec.ValidationError:
        return False
    return True


def _of_lease(of: _Json) -> _Json:
    """Settings that only name the policy; an order that is not known is none to go on."""
    known = of.get("order", Order.RUN) in list(Order)
    return {"settings": {"name": of.get("policy")}} | ({} if known else {"order": Order.PAUSE})


def _of_word(_: _Json) -> _Json:
    """A stage at which the engine has the policy, and nothing more is said of that."""
    return {"stage": Stage.LOADING}
