"""The engine's link to the placement map: follows its own part, and reports what it holds.

Losing Redis loses nothing: the engine keeps what it has and goes on serving; what it knows is told again in full.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mint_contracts.backoff import delay_s
from mint_contracts.errors import MapUnavailable
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import MapReporter
from mint_contracts.records import Assignment, EngineRecord, Held

POLL_S = 1.0
REREAD_S = 10.0  # a map that was lost and rewritten can come to the same version again
HEARTBEAT_S = 2.0
COALESCE_S = 0.05
FIRST_RETRY_S = 0.2
LONGEST_RETRY_S = 3.0

_OUTAGES = (MapUnavailable, ResponseError, msgspec.MsgspecError)

log = structlog.get_logger(__name__)


class Body(msgspec.Struct, frozen=True):
    """What the agent speaks for. `describe(map_version, sequence)` gives the engine's record as of now."""

    describe: Callable[[int, int], EngineRecord]
    holdings: Callable[[], dict[str, Held]]
    want: Callable[[Iterable[Assignment]], None]


class Agent:
    """Follows and reports until cancelled. `run` raises StaleEpoch when a later start of this engine has reported."""

    def __init__(self, redis: Redis, base: str, engine: str, body: Body) -> None:
        self._reader = MapReader(redis)
        self._reporter = MapReporter(redis, base, engine)
        self._base, self._engine, self._body = base, engine, body
        self._outage = _Outage()
        self._version: int | None = None
        self._polled_at = self._read_at = 0.0
        self._changed = asyncio.Event()
        self._told: dict[str, Held] = {}
        self._sequence = 0
        self._full = True
        self._waiting: list[asyncio.Future[None]] = []

    def changed(self) -> None:
        """Something that the map must know has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Follow and report."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow())
                tasks.create_task(self._report())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    async def tell(self, timeout_s: float) -> bool:
        """Wait until what is true now was reported; False if the map could not be reached in time."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._changed.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await done
            return True
        return False

    async def leave(self) -> None:
        """End the heartbeat now; after `run` was cancelled."""
        try:
            await self._reporter.leave()
        except _OUTAGES as error:
            log.warning("leave_unheard", engine=self._engine, error=str(error))

    async def _follow(self) -> None:
        failures = 0
        while True:
            try:
                async with self._reader.changes(self._base) as wait:
                    await self._pull(hinted=True)
                    failures = 0
                    while True:
                        hint = await wait(POLL_S)
                        await self._pull(hinted=hint == "map")
            except _OUTAGES as error:
                failures += 1
                self._outage.failed(error, self._engine)
            await asyncio.sleep(delay_s(failures, first_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S))

    async def _pull(self, *, hinted: bool) -> None:
        """Read the map's version, at most once a poll interval unless hinted; and this engine's part if it is new."""
        now = time.monotonic()
        if not hinted and now - self._polled_at < POLL_S:
            return
        self._polled_at = now
        version = await self._reader.version(self._base)
        self._outage.over(self._engine)
        if version is None:  # not known, which is not the same as nothing wanted
            self._version = None
            return
        if version == self._version and not hinted and now - self._read_at < REREAD_S:
            return
        assigned = await self._reader.assigned(self._base, self._engine)
        self._body.want(assigned.values())
        if version != self._version:
            log.info("map_read", engine=self._engine, version=version, assigned=len(assigned))
        self._version, self._read_at = version, now
        self._changed.set()

    async def _report(self) -> None:
        failures = 0
        while True:
            try:
                await self._report_once()
                failures = 0
                self._outage.over(self._engine)
                await self._next_report()
            except _OUTAGES as error:
                failures += 1
                self._full = True  # whether the last report arrived is not known
                self._outage.failed(error, self._engine)
                await asyncio.sleep(delay_s(failures, first_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S))

    async def _report_once(self) -> None:
        self._changed.clear()
        waiting, held = self._waiting[:], self._body.holdings()
        changed = [each for name, each in held.items() if self._told.get(name) != each]
        gone = [name for name in self._told if name not in held]
        self._sequence += bool(changed or gone)
        record = self._body.describe(self._version or 0, self._sequence)
        known = not self._full and await self._reporter.report(record, changed, gone, full=False)
        if not known:
            if not self._full:
                log.info("map_forgot_us", engine=self._engine)
            await self._reporter.report(record, list(held.values()), (), full=True)
        self._told, self._full = held, False
        self._waiting = [each for each in self._waiting if each not in waiting]
        for done in waiting:
            if not done.done():
                done.set_result(None)

    async def _next_report(self) -> None:
        """Wait for the next heartbeat, or for a change and what comes with it."""
        heartbeat = HEARTBEAT_S * (0.9 + 0.1 * random.random())  # noqa: S311 - spreads engines out, guards nothing
        with suppress(TimeoutError):
            async with asyncio.timeout(heartbeat):
                await self._changed.wait()
                await asyncio.sleep(COALESCE_S)


class _Outage:
    """One log line when Redis goes away, one when it is back."""

    def __init__(self) -> None:
        self._since: float | None = None

    def failed(self, error: Exception, engine: str) -> None:
        if self._since is None:
            self._since = time.monotonic()
            log.warning("map_lost", engine=engine, error=str(error), serving="continues")

    def over(self, engine: str) -> None:
        if self._since is not None:
            log.info("map_back", engine=engine, seconds=round(time.monotonic() - self._since, 2))
            self._since = None
