"""Reporting to the placement map: each engine reports for itself, fenced by its incarnation."""

from collections.abc import Sequence

import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.functions import call, text
from mint_contracts.records import EngineRecord, Held

HEARTBEAT_TTL_S = 6.0
TELLING_TTL_S = 60.0  # longer than the interval between an engine's attempts
HELD_PER_CALL = 500  # adapters set or removed; such a call keeps Redis, which runs one at a time, busy for about 1 ms


class ReportReply(msgspec.Struct, frozen=True):
    """The map's answer to a report, so that a heartbeat also shows whether anything is new.

    `known`: the report was taken; False asks for a full one. `edition` grows when this engine's part changes.
    """

    known: bool
    version: int | None  # of the map; None: never completed, or lost
    edition: int
    held: int = 0  # number of adapters that the map now has for this engine

    def __bool__(self) -> bool:
        """Whether the report was taken."""
        return self.known


def reported_recently(left_ms: int) -> bool:
    """Whether an engine has sent a part of a full report within a heartbeat's time to live.

    `left_ms` is the remaining time to live of its parts. If not, it counts as ended, like one without a heartbeat.
    """
    return left_ms > (TELLING_TTL_S - HEARTBEAT_TTL_S) * 1000


class MapReporter:
    """One engine's reports. `incarnation` grows with every start, so that an old process cannot speak for a new one.

    If a clock was put back it does not grow; reports are then accepted once the previous start's heartbeat expires.

    A call names as `over` the sequence that the map was left at, and the map continues from no other. So a call whose
    answer was lost can be repeated unchanged: it takes effect once, and returns whether it did.
    """

    def __init__(self, redis: Redis, base: str, engine: str) -> None:
        self._redis = redis
        self._base = base
        self._engine = engine
        self._incarnation = 0  # of the last report or part of one; 0: none yet
        self._reported: object = None  # the last reported fields that followers judge the engine by

    async def report(
        self, record: EngineRecord, changed: Sequence[Held], gone: Sequence[str], *, full: bool, over: int = 0
    ) -> ReportReply:
        """Report holdings as of the record's sequence and renew the heartbeat.

        If the answer is not `known`, the map has lost this engine or some of its reports: repeat with `full=True`.
        `over` is the sequence that the map was left at. With `full`, `changed` is everything that the engine holds,
        or its difference from the parts that `tell` has sent up to `over`. Raises StaleEpoch while a later start of
        the same engine has a heartbeat.
        """
        base, engine = self._base, self._engine
        names = [keys.engines(base), keys.engine(base, engine), keys.held(base, engine)]
        names += [keys.version(base), keys.editions(base), keys.told(base), keys.telling(base, engine)]
        names.append(keys.held_recently(base, engine))
        judged = (record.ready, record.failure, record.address, record.incarnation)
        news = full or changed or gone or judged != self._reported
        args = [engine, str(record.incarnation), text(record), _ms(HEARTBEAT_TTL_S), "1" if full else "0", str(over)]
        args += [str(record.sequence), keys.changed(base), "1" if news else "0", *_changes(changed, gone)]
        known, version, edition, held = await call(self._redis, "report", names, args)
        if known:
            self._reported, self._incarnation = judged, record.incarnation
        return ReportReply(bool(known), None if version < 0 else int(version), int(edition), int(held))

    async def tell(
        self, incarnation: int, sequence: int, changed: Sequence[Held], gone: Sequence[str], *, over: int
    ) -> bool:
        """Send one part of everything that the engine holds; nobody reads it before a full report completes it.

        `over` is the sequence of the previous part; 0 for the first. Returns False if the map has lost the parts
        before: begin again. What the map has of the engine stays as it is, and its heartbeat is renewed. Raises
        StaleEpoch as `report` does, and while a later start is sending parts.
        """
        base, engine = self._base, self._engine
        names = [keys.engines(base), keys.engine(base, engine), keys.telling(base, engine), keys.told(base)]
        args = [engine, str(incarnation), str(over), str(sequence), _ms(HEARTBEAT_TTL_S), _ms(TELLING_TTL_S)]
        self._incarnation = incarnation
        return bool(await call(self._redis, "tell", names, [*args, *_changes(changed, gone)]))

    async def leave(self) -> None:
        """End the heartbeat now instead of letting it expire, and drop an unfinished report.

        A later start's heartbeat and report stay.
        """
        base, engine = self._base, self._engine
        names = [keys.engines(base), keys.engine(base, engine), keys.telling(base, engine)]
        await call(self._redis, "leave", names, [engine, str(self._incarnation), keys.changed(base)])


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))


def _changes(changed: Sequence[Held], gone: Sequence[str]) -> list[str]:
    """Return call arguments: the number of records, each adapter with its record, then the adapters to remove."""
    pairs = [part for held in changed for part in (held.adapter, text(held))]
    return [str(len(changed)), *pairs, *gone]
