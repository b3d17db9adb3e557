"""Reporting to the placement map: each engine for itself, fenced by its incarnation."""

from collections.abc import Sequence

import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.functions import call, text
from mint_contracts.records import EngineRecord, Held

HEARTBEAT_TTL_S = 6.0
TELLING_TTL_S = 60.0  # longer than an engine's tries lie apart
HELD_PER_CALL = (
    500  # adapters set or removed: Redis, which does one call at a time, is then done in about a millisecond
)


class Heard(msgspec.Struct, frozen=True):
    """What the map answers to a report, so that a heartbeat is also the look whether anything is new.

    `known`: the report was taken; False asks for a full one. `edition` grows when this engine's part changes.
    """

    known: bool
    version: int | None  # of the map; None: never completed, or lost
    edition: int
    held: int = 0  # adapters that this engine holds, as the map has it now

    def __bool__(self) -> bool:
        """Whether the report was taken."""
        return self.known


def told_lately(left_ms: int) -> bool:
    """Whether an engine has told a part within the time that a heartbeat lives: `left_ms` of milliseconds are left of
    those that its parts are kept for.

    One that has not counts as ended, as one without a heartbeat does.
    """
    return left_ms > (TELLING_TTL_S - HEARTBEAT_TTL_S) * 1000


class MapReporter:
    """One engine's reports. `incarnation` grows with every start, so that an old process cannot speak for a new.

    Where a clock was put back it does not: such a start is heard once the heartbeat of the one before has ended.

    The map goes on from the sequence that it was left at, which a call names as `over`, and from no other. So a call
    whose answer was lost may be made again as it was: it is carried out once, and tells whether it was.
    """

    def __init__(self, redis: Redis, base: str, engine: str) -> None:
        self._redis = redis
        self._base = base
        self._engine = engine
        self._incarnation = 0  # as last reported, or told in part; 0: never
        self._reported: object = None  # what followers judge the engine by, as last reported

    async def report(
        self, record: EngineRecord, changed: Sequence[Held], gone: Sequence[str], *, full: bool, over: int = 0
    ) -> Heard:
        """Report holdings as of the record's sequence and beat the heart. Not known: the map has lost this engine, or
        some of what it was told; call again with `full=True`.

        `over` is the sequence that the map was left at. With `full`, `changed` is everything the engine holds, or
        how that differs from what `tell` has told up to `over`. Raises StaleEpoch while the heart of a later start
        of the same engine beats.
        """
        base, engine = self._base, self._engine
        names = [keys.engines(base), keys.engine(base, engine), keys.held(base, engine)]
        names += [keys.version(base), keys.editions(base), keys.told(base), keys.telling(base, engine)]
        judged = (record.ready, record.failure, record.address, record.incarnation)
        news = full or changed or gone or judged != self._reported
        args = [engine, str(record.incarnation), text(record), _ms(HEARTBEAT_TTL_S), "1" if full else "0", str(over)]
        args += [str(record.sequence), keys.changed(base), "1" if news else "0", *_changes(changed, gone)]
        known, version, edition, held = await call(self._redis, "report", names, args)
        if known:
            self._reported, self._incarnation = judged, record.incarnation
        return Heard(bool(known), None if version < 0 else int(version), int(edition), int(held))

    async def tell(
        self, incarnation: int, sequence: int, changed: Sequence[Held], gone: Sequence[str], *, over: int
    ) -> bool:
        """Tell a part of everything that the engine holds, which nobody reads before a full report completes it.

        `over` is the sequence of the part before; 0: this is the first. False: the map has lost those before, begin
        again. What the map has of the engine stays as it is, and its heart beats on. Raises StaleEpoch as `report`
        does, and while a later start is telling.
        """
        base, engine = self._base, self._engine
        names = [keys.engines(base), keys.engine(base, engine), keys.telling(base, engine), keys.told(base)]
        args = [engine, str(incarnation), str(over), str(sequence), _ms(HEARTBEAT_TTL_S), _ms(TELLING_TTL_S)]
        self._incarnation = incarnation
        return bool(await call(self._redis, "tell", names, [*args, *_changes(changed, gone)]))

    async def leave(self) -> None:
        """Say goodbye: the heartbeat ends now instead of running out, and what was told in part goes.

        Not those of a later start.
        """
        base, engine = self._base, self._engine
        names = [keys.engines(base), keys.engine(base, engine), keys.telling(base, engine)]
        await call(self._redis, "leave", names, [engine, str(self._incarnation), keys.changed(base)])


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))


def _changes(changed: Sequence[Held], gone: Sequence[str]) -> list[str]:
    """How many are set, each with its record, and those to remove."""
    pairs = [part for held in changed for part in (held.adapter, text(held))]
    return [str(len(changed)), *pairs, *gone]
