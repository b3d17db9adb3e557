"""Writing the placement map: the operator alone may, fenced by its epoch."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.functions import bounded, call, text
from mint_contracts.records import Assignment, MapChange, Placement

OPS_PER_CALL = 1000


class MapWriter:
    """The operator's writes. A write under an old epoch raises StaleEpoch and changes nothing."""

    def __init__(self, redis: Redis, epoch: int) -> None:
        self._redis = redis
        self.epoch = epoch

    async def apply(self, base: str, change: MapChange) -> int:
        """Write a change; readers see its version grow once the whole of it is there. Returns that version."""
        await bounded(lambda: self._redis.sadd(keys.BASES, base))
        calls = _split(change)
        version = 0
        for index, part in enumerate(calls):
            version = await self._apply_part(base, part, commit=index == len(calls) - 1)
        return version

    async def _apply_part(self, base: str, part: MapChange, *, commit: bool) -> int:
        engines = sorted({*part.set_assigned, *part.del_assigned})
        ops = {
            "placements": _ops(part.set_placements, part.del_placements),
            "assigned": [
                _ops(part.set_assigned.get(engine, ()), part.del_assigned.get(engine, ())) for engine in engines
            ],
        }
        names = [keys.epoch(base), keys.version(base), keys.base_record(base), keys.placements(base)]
        names += [keys.assigned(base, engine) for engine in engines]
        record = "" if part.base is None else text(part.base)
        args = [str(self.epoch), keys.changed(base), record, "1" if commit else "0", text(ops)]
        return int(await call(self._redis, "apply", names, args))

    async def forget(self, base: str) -> None:
        """Remove every key of a base that no longer exists; the epoch stays, as the fence."""
        pattern = keys.epoch(base).removesuffix("epoch") + "*"
        names = [name async for name in _scan(self._redis, pattern) if name != keys.epoch(base)]
        await call(self._redis, "forget", [keys.epoch(base), *sorted(names)], [str(self.epoch)])
        await bounded(lambda: self._redis.srem(keys.BASES, base))


def _ops(records: Sequence[Placement | Assignment], names: Sequence[str]) -> dict[str, Any]:
    return {"set": [[record.adapter, text(record)] for record in records], "del": list(names)}


def _split(change: MapChange) -> list[MapChange]:
    """The change in parts of at most OPS_PER_CALL operations; at least one part, the base record in the first."""
    parts: list[MapChange] = []
    for start in range(0, len(change.set_placements), OPS_PER_CALL):
        parts.append(MapChange(set_placements=change.set_placements[start : start + OPS_PER_CALL]))
    for start in range(0, len(change.del_placements), OPS_PER_CALL):
        parts.append(MapChange(del_placements=change.del_placements[start : start + OPS_PER_CALL]))
    for engine, records in sorted(change.set_assigned.items()):
        for start in range(0, len(records), OPS_PER_CALL):
            parts.append(MapChange(set_assigned={engine: records[start : start + OPS_PER_CALL]}))
    for engine, names in sorted(change.del_assigned.items()):
        for start in range(0, len(names), OPS_PER_CALL):
            parts.append(MapChange(del_assigned={engine: names[start : start + OPS_PER_CALL]}))
    if not parts:
        parts.append(MapChange())
    parts[0] = msgspec.structs.replace(parts[0], base=change.base)
    return parts


async def _scan(redis: Redis, pattern: str) -> AsyncIterator[str]:
    escaped = pattern.replace("[", "\\[").replace("?", "\\?")
    async for name in redis.scan_iter(match=escaped, count=1000):
        yield str(name)
