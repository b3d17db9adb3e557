"""Reporting to the placement map: each engine for itself, fenced by its incarnation."""

from collections.abc import Sequence

import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.functions import call, text
from mint_contracts.records import EngineRecord, Held

HEARTBEAT_TTL_S = 6.0


class Heard(msgspec.Struct, frozen=True):
    """What the map answers to a report, so that a heartbeat is also the look whether anything is new.

    `known`: the report was taken; False asks for a full one. `edition` grows when this engine's part changes.
    """

    known: bool
    version: int | None  # of the map; None: never completed, or lost
    edition: int

    def __bool__(self) -> bool:
        """Whether the report was taken."""
        return self.known


class MapReporter:
    """One engine's reports. `incarnation` grows with every start, so that an old process cannot speak for a new.

    Where a clock was put back it does not: such a start is heard once the heartbeat of the one before has ended.
    """

    def __init__(self, redis: Redis, base: str, engine: str) -> None:
        self._redis = redis
        self._base = base
        self._engine = engine
        self._incarnation = 0  # as last reported; 0: never
        self._told: object = None  # what followers judge the engine by, as last reported

    async def report(
        self, record: EngineRecord, changed: Sequence[Held], gone: Sequence[str], *, full: bool
    ) -> Heard:
        """Report holdings and beat the heart. Not known: the map has lost this engine, call again with `full=True`.

        With `full`, `changed` is everything the engine holds. Raises StaleEpoch while the heart of a later
        start of the same engine beats.
        """
        base, engine = self._base, self._engine
        names = [keys.engines(base), keys.engine(base, engine), keys.held(base, engine)]
        names += [keys.version(base), keys.editions(base)]
        pairs = [[held.adapter, text(held)] for held in changed]
        args = [engine, str(record.incarnation), text(record), str(int(HEARTBEAT_TTL_S * 1000))]
        args += ["1" if full else "0", text(pairs), text(list(gone)), keys.changed(base)]
        judged = (record.ready, record.failure, record.address, record.incarnation)
        args.append("1" if full or changed or gone or judged != self._told else "0")
        known, version, edition = await call(self._redis, "report", names, args)
        if known:
            self._told, self._incarnation = judged, record.incarnation
        return Heard(known=bool(known), version=None if version < 0 else int(version), edition=int(edition))

    async def leave(self) -> None:
        """Say goodbye: the heartbeat ends now instead of running out, but for that of a later start."""
        base, engine = self._base, self._engine
        names = [keys.engines(base), keys.engine(base, engine)]
        await call(self._redis, "leave", names, [engine, str(self._incarnation), keys.changed(base)])
