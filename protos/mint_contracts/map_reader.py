"""Reading the placement map, open to everyone. Raises MapUnavailable if Redis does not answer in time.

Another version of MinT may have written a record in another form. One unreadable record does not affect the others:
it is read as far as possible, or skipped.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.functions import Messages, bounded, listening
from mint_contracts.hashes import PER_CALL, Json, T, decoded, read_each, read_hashes
from mint_contracts.map_reporter import reported_recently
from mint_contracts.map_writer import RECENT_ADAPTERS
from mint_contracts.records import (
    Assignment,
    BaseRecord,
    EngineRecord,
    Held,
    MapState,
    Placement,
    Tier,
    WaveRecord,
)

_MARK = re.compile(r"([0-9]{1,20}) [0-9]+")  # an unfinished report's incarnation and sequence


class Pulse(msgspec.Struct, frozen=True):
    """Shows a follower whether anything changed: small, and read in two round trips however much engines hold."""

    version: int | None  # of the operator's part; None: never completed, or lost
    epoch: int | None  # None: no operator has written here, or everything was lost
    engines: dict[str, EngineRecord | None]  # every engine that ever reported; None: its heartbeat has run out


class Part(msgspec.Struct, frozen=True):
    """One engine's own part of the map. Version None means that nothing is known, not that nothing is wanted."""

    version: int | None
    edition: int
    assigned: dict[str, Assignment]


class Known(msgspec.Struct, frozen=True):
    """What an engine held as of a report's `sequence`; the newest one of this incarnation is `now`."""

    held: Mapping[str, Held]
    incarnation: int
    sequence: int
    now: int

    @property
    def marks(self) -> list[str]:
        """The reports since, as the map keeps them."""
        return [f"{self.incarnation} {number}" for number in range(self.sequence + 1, self.now + 1)]


class _View(Protocol):
    """An engine as a follower of the map has read it; `record` is None if its heartbeat has expired."""

    @property
    def record(self) -> EngineRecord | None: ...

    @property
    def held(self) -> Mapping[str, Held]: ...


def known_of(views: Mapping[str, _View], pulse: Pulse) -> dict[str, Known]:
    """Return what is known of the pulse's engines, as far as they are still those that reported it."""
    found = {}
    for name, record in pulse.engines.items():
        last = views[name].record if name in views else None
        if record is not None and last is not None and last.incarnation == record.incarnation:
            found[name] = Known(views[name].held, record.incarnation, last.sequence, record.sequence)
    return found


MOST_RECENT = 64  # changes of the map, and reports of an engine; functions.lua keeps as many
_UNKNOWN: Mapping[str, Known] = {}


def _changed(said: Iterable[str | None]) -> list[str] | None:
    """Return the adapters of these records of changes; None if one is missing, or cannot be read: read everything."""
    try:
        return sorted({name for text in said for name in msgspec.json.decode(text or "", type=list[str])})
    except msgspec.DecodeError:  # one of a later MinT, or none
        return None


def _reread(
    before: Mapping[str, T],
    names: Sequence[str],
    raw: Sequence[str | None],
    kind: type[T],
    mend: Callable[[Json], T] | None = None,
) -> dict[str, T]:
    """Return the records from `before` with those of these names as they are now; a name without a text is gone."""
    kept = dict(before)
    for name in names:
        kept.pop(name, None)
    there = {name: text for name, text in zip(names, raw, strict=True) if text is not None}
    return kept | decoded(there, kind, mend)


class MapReader:
    """Reads any part of the map."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def bases(self) -> list[str]:
        """Return every base that has keys, sorted."""
        return sorted(await bounded(lambda: self._redis.smembers(keys.BASES)))

    async def led(self) -> bool:
        """Whether an operator has written every base here, if there are any; False: perhaps Redis has lost them."""
        return await bounded(lambda: self._redis.get(keys.LED)) is not None

    async def confirm_writes(self, base: str) -> None:
        """Raises MapUnavailable if Redis answers but takes no writes, as with a full disk."""
        await bounded(lambda: self._redis.unlink(keys.catalog(base, "nothing")))

    async def version(self, base: str) -> int | None:
        """Return the map's version; None if it was never completed or is lost."""
        text = await bounded(lambda: self._redis.get(keys.version(base)))
        return None if text is None else int(text)

    async def pulse(self, base: str) -> Pulse:
        """Return the version of the operator's part and every engine's record (whose `sequence` shows changes)."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.get(keys.version(base))
        pipeline.get(keys.epoch(base))
        pipeline.hkeys(keys.engines(base))
        version, epoch, names = await bounded(pipeline.execute)
        records = (
            await bounded(lambda: self._redis.mget([keys.engine(base, name) for name in names])) if names else []
        )
        return Pulse(
            version=None if version is None else int(version),
            epoch=None if epoch is None else int(epoch),
            engines={
                name: None if text is None else msgspec.json.decode(text, type=EngineRecord)
                for name, text in sorted(zip(names, records, strict=True))
            },
        )

    async def telling(self, base: str, engines: Collection[str]) -> dict[str, int]:
        """Return the engines that are in the middle of a full report, each with its incarnation.

        An engine that the map had lost shows no heartbeat until its full report is complete. One that has sent no
        part for as long as a heartbeat lives is left out: it has ended.
        """
        found: dict[str, int] = {}
        names = list(engines)
        for start in range(0, len(names), PER_CALL):
            some = names[start : start + PER_CALL]
            pipeline = self._redis.pipeline(transaction=False)
            for name in some:
                pipeline.hget(keys.telling(base, name), "")
                pipeline.pttl(keys.telling(base, name))
            replies = await bounded(pipeline.execute)
            for name, mark, left_ms in zip(some, replies[::2], replies[1::2], strict=True):
                if (read := _MARK.fullmatch(mark or "")) and reported_recently(left_ms):
                    found[name] = int(read[1])
        return found

    async def base_record(self, base: str) -> BaseRecord | None:
        """Return the operator's record of the base."""
        text = await bounded(lambda: self._redis.get(keys.base_record(base)))
        return None if text is None else msgspec.json.decode(text, type=BaseRecord)

    async def placements(self, base: str) -> dict[str, Placement]:
        """Return every explicit placement of a base, by adapter."""
        return decoded(await bounded(lambda: self._redis.hgetall(keys.placements(base))), Placement, _warm_placement)

    async def placements_since(
        self, base: str, before: Mapping[str, Placement], version: int, now: int
    ) -> dict[str, Placement] | None:
        """Return the placements at version `now`: those `before` (of `version`) with the ones that changed since.

        None if it is not known which did: read all of them.
        """
        if not version < now <= version + MOST_RECENT:
            return None
        versions = [str(each) for each in range(version + 1, now + 1)]
        names = _changed(await bounded(lambda: self._redis.hmget(keys.recent(base), versions)))
        if names is None or len(names) > RECENT_ADAPTERS:
            return None
        raw = await bounded(lambda: self._redis.hmget(keys.placements(base), names)) if names else []
        return _reread(before, names, raw, Placement, _warm_placement)

    async def placement(self, base: str, adapter: str) -> Placement | None:
        """Return one adapter's explicit placement; None if no wave names it."""
        raw = await bounded(lambda: self._redis.hget(keys.placements(base), adapter))
        return None if raw is None else decoded({adapter: raw}, Placement, _warm_placement).get(adapter)

    async def waves(self, base: str) -> dict[str, WaveRecord]:
        """Return every wave over a base, by "namespace/name"."""
        return decoded(await bounded(lambda: self._redis.hgetall(keys.waves(base))), WaveRecord, _warm_wave)

    async def has_wave(self, base: str, wave: str) -> bool | None:
        """Whether the operator has written a wave of that name over a base; None if the map was lost."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.exists(keys.version(base))
        pipeline.hexists(keys.waves(base), wave)
        known, has = await bounded(pipeline.execute)
        return bool(has) if known else None

    async def part(self, base: str, engine: str) -> Part:
        """Return one engine's part of the map, in one round trip."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.get(keys.version(base))
        pipeline.hget(keys.editions(base), engine)  # before the part itself: a change in between is read again
        pipeline.hgetall(keys.assigned(base, engine))
        version, edition, raw = await bounded(pipeline.execute)
        return Part(
            version=None if version is None else int(version),
            edition=int(edition or 0),
            assigned=decoded(raw, Assignment, _warm_assignment),
        )

    async def held(self, base: str, engine: str) -> dict[str, Held]:
        """Return what one engine reports to hold, by adapter."""
        return decoded(await bounded(lambda: self._redis.hgetall(keys.held(base, engine))), Held)

    async def holdings(
        self, base: str, engines: Sequence[str], known: Mapping[str, Known] = _UNKNOWN
    ) -> dict[str, dict[str, Held]]:
        """Return what each of these engines reports to hold; if it is `known`, only what has changed is read."""
        found = await self._updated(base, {engine: known[engine] for engine in engines if engine in known})
        rest = [engine for engine in engines if engine not in found]
        raws = await read_hashes(self._redis, [keys.held(base, engine) for engine in rest])
        return found | {engine: decoded(raw, Held) for engine, raw in zip(rest, raws, strict=True)}

    async def _updated(self, base: str, known: Mapping[str, Known]) -> dict[str, dict[str, Held]]:
        """Return what engines hold by what has changed since; without those of which that is not known."""
        near = {engine: each for engine, each in known.items() if 0 < each.now - each.sequence <= MOST_RECENT}
        said = await self._fields({keys.held_recently(base, engine): each.marks for engine, each in near.items()})
        read = {engine: _changed(each) for engine, each in zip(near, said, strict=True)}
        changed = {engine: names for engine, names in read.items() if names is not None}
        raws = await self._fields({keys.held(base, engine): names for engine, names in changed.items()})
        return {
            engine: _reread(near[engine].held, names, raw, Held)
            for (engine, names), raw in zip(changed.items(), raws, strict=True)
        }

    async def _fields(self, wanted: Mapping[str, Sequence[str]]) -> list[list[str | None]]:
        """Return these fields of each of these hashes."""
        return await read_each(self._redis, list(wanted), lambda line, name: line.hmget(name, wanted[name]))

    async def state(self, base: str, engines: Sequence[str]) -> MapState:
        """Return the operator's own part, for the named engines and every engine that ever reported."""
        reported = await bounded(lambda: self._redis.hkeys(keys.engines(base)))
        names = sorted({*engines, *reported})
        raws = await read_hashes(self._redis, [keys.assigned(base, name) for name in names])
        return MapState(
            version=await self.version(base),
            base=await self.base_record(base),
            placements=await self.placements(base),
            assigned={
                name: decoded(raw, Assignment, _warm_assignment) for name, raw in zip(names, raws, strict=True)
            },
            waves=await self.waves(base),
        )

    def changes(self) -> Messages:
        """Listen for hints that the map of any base has changed."""
        return listening(self._redis, "mint:*:changed")

    def calls(self, base: str, engine: str) -> Messages:
        """Listen for hints that this engine's part has changed."""
        return listening(self._redis, keys.called(base, engine))


def _warmest(of: Json) -> Json:
    """Return the record with Device for a residency that this version does not know, so that nothing gets colder."""
    return of if of.get("residency", Tier.DEVICE) in list(Tier) else of | {"residency": Tier.DEVICE}


def _warm_placement(of: Json) -> Placement:
    places = of.get("places")
    if isinstance(places, list) and all(isinstance(each, dict) for each in places):
        of = of | {"places": [_warmest(each) for each in places]}
    return msgspec.convert(of, Placement)


def _warm_assignment(of: Json) -> Assignment:
    return msgspec.convert(_warmest(of), Assignment)


def _warm_wave(of: Json) -> WaveRecord:
    return msgspec.convert(_warmest(of), WaveRecord)
