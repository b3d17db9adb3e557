"""Reporting to the placement map: each engine for itself, fenced by its incarnation."""

from collections.abc import Sequence

from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.functions import bounded, call, text
from mint_contracts.records import EngineRecord, Held

HEARTBEAT_TTL_S = 6.0


class MapReporter:
    """One engine's reports. `incarnation` grows with every start, so that an old process cannot speak for a new."""

    def __init__(self, redis: Redis, base: str, engine: str) -> None:
        self._redis = redis
        self._base = base
        self._engine = engine

    async def report(self, record: EngineRecord, changed: Sequence[Held], gone: Sequence[str], *, full: bool) -> bool:
        """Report holdings and beat the heart. False: the map has lost this engine, call again with `full=True`.

        With `full`, `changed` is everything the engine holds. Raises StaleEpoch when a later start of the same
        engine has reported.
        """
        base, engine = self._base, self._engine
        names = [keys.engines(base), keys.engine(base, engine), keys.held(base, engine)]
        pairs = [[held.adapter, text(held)] for held in changed]
        args = [engine, str(record.incarnation), text(record), str(int(HEARTBEAT_TTL_S * 1000))]
        args += ["1" if full else "0", text(pairs), text(list(gone)), keys.changed(base)]
        return bool(await call(self._redis, "report", names, args))

    async def leave(self) -> None:
        """Say goodbye: the heartbeat ends now instead of running out."""
        await bounded(lambda: self._redis.delete(keys.engine(self._base, self._engine)))
        await bounded(lambda: self._redis.publish(keys.changed(self._base), f"engine {self._engine}"))
