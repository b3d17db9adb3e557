"""Writing the placement map, which only the operator does, fenced by its epoch."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.functions import bounded, call, text
from mint_contracts.records import Assignment, MapChange, MapState, Placement

OPS_PER_CALL = 1000
RECENT_ADAPTERS = 1000  # of one change: beyond that, followers read everything
FORGOTTEN_PER_CALL = 1000  # keys: a base's catalog may have tens of thousands

T = TypeVar("T")


class MapWriter:
    """The operator's writes. A write under an old epoch raises StaleEpoch and changes nothing."""

    def __init__(self, redis: Redis, epoch: int) -> None:
        self._redis = redis
        self.epoch = epoch

    async def claim(self, base: str) -> None:
        """Fence off earlier writers of a base, so that what is read from now on only this one changes."""
        await call(self._redis, "claim", [keys.epoch(base)], [str(self.epoch)])

    async def note_leading(self) -> None:
        """Note that every base that there is has been written, so that nobody takes an empty map for a lost one."""
        await bounded(lambda: self._redis.set(keys.LED, self.epoch, nx=True))

    async def apply(self, base: str, change: MapChange, over: MapState | None = None) -> int:
        """Write a change of `over`; the version grows once the complete change is there. Returns the version.

        Raises MapUnavailable if the map no longer has the version of `over` (None: any version will do), or was lost
        between two parts of the change. A change of waves only does not grow the version, as nobody follows waves;
        nor does a change that does not complete the map.
        """
        seen = "" if over is None else str(-1 if over.version is None else over.version)
        called = sorted({*change.set_assigned, *change.del_assigned})
        tells_only = not change.completes or (bool(change) and not change.places)
        *before, last = _split(change)
        token, names = uuid.uuid4().hex, _placed(change)
        for number, part in enumerate(before):
            await self._apply_part(base, part, None, (seen, "next" if number else "first", token), names)
        which = "last" if before else "whole"
        return await self._apply_part(base, last, None if tells_only else called, (seen, which, token), names)

    async def _apply_part(
        self, base: str, part: MapChange, called: Sequence[str] | None, guard: tuple[str, str, str], names: str
    ) -> int:
        """Make one call. `called` commits the complete change and notifies these engines. Returns the version.

        `guard` is what the map is checked against: the version seen, which part this is, and the change's token.
        `names` are the adapters whose placements the complete change touches, as JSON.
        """
        engines = sorted({*part.set_assigned, *part.del_assigned})
        ops = {
            "placements": _ops(part.set_placements, part.del_placements),
            "waves": {"set": [[each.wave, text(each)] for each in part.set_waves], "del": list(part.del_waves)},
            "assigned": [
                _ops(part.set_assigned.get(engine, ()), part.del_assigned.get(engine, ())) for engine in engines
            ],
        }
        fields = [keys.epoch(base), keys.version(base), keys.base_record(base), keys.placements(base)]
        fields += [keys.editions(base), keys.waves(base), keys.writing(base), keys.recent(base)]
        fields += [keys.assigned(base, engine) for engine in engines]
        record = "" if part.base is None else text(part.base)
        channels = [[engine, keys.called(base, engine)] for engine in called or ()]
        args = [
            str(self.epoch),
            keys.changed(base),
            record,
            "0" if called is None else "1",
            text(ops),
            text(channels),
            *guard,
            keys.BASES,
            base,
            names,
        ]
        return int(await call(self._redis, "apply", fields, args))

    async def forget(self, base: str) -> None:
        """Remove every key of a base that no longer exists, except the epoch, which is the fence.

        The base's record is removed first: from then on no gateway can write its catalog (catalog.lua).
        """
        record = keys.base_record(base)
        await self._remove(base, [record])
        names = [name for name in await _all_of(self._redis, base) if name != keys.epoch(base)]
        for start in range(0, len(names), FORGOTTEN_PER_CALL):
            await self._remove(base, names[start : start + FORGOTTEN_PER_CALL])
        await call(self._redis, "unlist", [keys.epoch(base), record], [str(self.epoch), keys.BASES, base])

    async def _remove(self, base: str, names: Sequence[str]) -> None:
        await call(self._redis, "forget", [keys.epoch(base), *names], [str(self.epoch)])


def _placed(change: MapChange) -> str:
    """Return the adapters whose placements a change touches, as JSON; "" if they are too many."""
    names = [*[each.adapter for each in change.set_placements], *change.del_placements]
    return text(names) if len(names) <= RECENT_ADAPTERS else ""


def _ops(records: Sequence[Placement | Assignment], names: Sequence[str]) -> dict[str, Any]:
    return {"set": [[record.adapter, text(record)] for record in records], "del": list(names)}


def _split(change: MapChange) -> list[MapChange]:
    """Split a change into parts of at most OPS_PER_CALL operations; at least one, the first with the base record."""
    parts = [
        MapChange(**{field: getattr(change, field)[start : start + OPS_PER_CALL]})
        for field in ("set_placements", "del_placements", "set_waves", "del_waves")
        for start in range(0, len(getattr(change, field)), OPS_PER_CALL)
    ]
    parts += [MapChange(set_assigned=records) for records in _packed(change.set_assigned)]
    parts += [MapChange(del_assigned=names) for names in _packed(change.del_assigned)]
    first, *rest = parts or [MapChange()]
    return [msgspec.structs.replace(first, base=change.base), *rest]


def _packed(by_engine: Mapping[str, tuple[T, ...]]) -> Iterator[dict[str, tuple[T, ...]]]:
    """Yield the operations of many engines in groups of at most OPS_PER_CALL."""
    room, packed = OPS_PER_CALL, dict[str, tuple[T, ...]]()
    for engine, operations in sorted(by_engine.items()):
        rest = operations
        while rest:
            packed[engine], rest = rest[:room], rest[room:]
            room -= len(packed[engine])
            if room == 0:
                yield packed
                room, packed = OPS_PER_CALL, {}
    if packed:
        yield packed


async def _all_of(redis: Redis, base: str) -> list[str]:
    """Return every key of a base, sorted."""
    pattern = keys.epoch(base).removesuffix("epoch") + "*"
    found, cursor = set[str](), 0
    while True:
        cursor, names = await bounded(partial(redis.scan, cursor, match=pattern, count=1000))
        found.update(names)
        if not cursor:
            return sorted(found)
