"""The engine's link to the placement map: it follows the engine's own part and reports what the engine holds.

Losing Redis loses nothing: the engine keeps what it has, continues to serve, and reports again what the map has lost.
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
from mint_contracts.map_reporter import MapReporter, ReportReply
from mint_contracts.reasons import Reasons
from mint_contracts.records import Assignment, EngineRecord, Held
from mint_engine.holdings_link import HoldingsLink
from mint_engine.train_link import TrainBody, TrainLink

LISTEN_S = 5.0
REREAD_S = 10.0  # a map that was lost and rewritten can come to the same edition again
HEARTBEAT_S = 2.0
COALESCE_S = 0.05
FIRST_RETRY_S = 0.2
LONGEST_RETRY_S = 3.0

_OUTAGES = (MapUnavailable, ResponseError, msgspec.MsgspecError)

log = structlog.get_logger(__name__)


class Body(msgspec.Struct, frozen=True):
    """The engine, as the agent sees it. `describe(map_version, sequence)` returns the engine's current record."""

    describe: Callable[[int, int], EngineRecord]
    holdings: Callable[[], dict[str, Held]]
    want: Callable[[Iterable[Assignment]], None]
    training: TrainBody | None = None  # None: this engine only serves


class Agent:
    """Follows the map and reports to it until cancelled.

    `run` raises StaleEpoch if a later start of this engine has reported, or has begun a full report.
    """

    def __init__(self, redis: Redis, base: str, engine: str, body: Body) -> None:
        self._reader = MapReader(redis)
        self._reporter = MapReporter(redis, base, engine)
        self._base, self._engine, self._body = base, engine, body
        self._holdings = HoldingsLink(self._reporter, engine, lambda at: body.describe(self._version or 0, at))
        self._training = None if body.training is None else TrainLink(redis, base, engine, body.training)
        self._outage = _Outage()
        self._version: int | None = None
        self._edition: int | None = None  # of the part last read; None: read it as soon as the map is known
        self._stale = asyncio.Event()
        self._changed = asyncio.Event()
        self._unsure = False  # the map may have lost reports of training, which have no sequence
        self._waiting: list[asyncio.Future[None]] = []

    def changed(self) -> None:
        """Report soon: something that the map must know has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Follow the map and report to it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen())
                tasks.create_task(self._follow())
                tasks.create_task(self._report())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    async def tell(self, timeout_s: float) -> bool:
        """Report the current state and wait for it; return False if the map could not be reached in time."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._changed.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await done
            return True
        return False

    async def leave(self) -> None:
        """End the heartbeat now. Call it after `run` was cancelled."""
        try:
            await self._reporter.leave()
        except _OUTAGES as error:
            log.warning("leave_unheard", engine=self._engine, error=str(error))

    async def _listen(self) -> None:
        """Mark the part as stale at every message, and at every subscription, as messages may have been missed."""
        failures = 0
        while True:
            try:
                async with self._reader.calls(self._base, self._engine) as wait:
                    self._stale.set()
                    while True:
                        if await wait(LISTEN_S) is not None:
                            self._stale.set()
                        failures = 0
            except _OUTAGES as error:
                failures += 1
                self._failed(error)
            await asyncio.sleep(delay_s(failures, first_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S))

    async def _follow(self) -> None:
        """Read this engine's part whenever it is stale, and every REREAD_S in any case."""
        failures = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(REREAD_S * (0.9 + 0.1 * random.random())):  # noqa: S311 - spreads engines
                    await self._stale.wait()
            self._stale.clear()
            try:
                await self._pull()
                failures = 0
            except _OUTAGES as error:
                failures += 1
                self._stale.set()
                self._failed(error)
                await asyncio.sleep(delay_s(failures, first_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S))

    async def _pull(self) -> None:
        part = await self._reader.part(self._base, self._engine)
        self._outage.over(self._engine)
        news, self._version = part.version != self._version, part.version
        if part.version is None:  # unknown, which does not mean that nothing is wanted
            self._edition = None
            return
        self._edition = part.edition
        self._body.want(part.assigned.values())
        if self._training is not None:
            await self._training.pull()
        if news:
            log.info("map_read", engine=self._engine, version=part.version, assigned=len(part.assigned))
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
                self._failed(error)
                await asyncio.sleep(delay_s(failures, first_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S))

    async def _report_once(self) -> None:
        self._changed.clear()
        waiting = self._waiting[:]
        unsure, self._unsure = self._unsure, False
        delivered = await self._holdings.bring(self._body.holdings())
        if self._training is not None:
            await self._training.report(delivered.incarnation, full=delivered.in_full or unsure)
        self._hear(delivered.heard)
        self._waiting = [each for each in self._waiting if each not in waiting]
        for done in waiting:
            if not done.done():
                done.set_result(None)

    def _hear(self, heard: ReportReply) -> None:
        """Read the answer to a report, which shows new editions: a lost message costs at most a heartbeat."""
        if heard.version is None:
            self._version = self._edition = None
        elif heard.edition == self._edition:
            self._version = heard.version
            if self._training is not None:
                self._training.confirm()
        else:
            self._stale.set()

    def _failed(self, error: Exception) -> None:
        """Note an outage. Whichever connection fails, the Redis that comes back may not know the last report.

        The next report of holdings detects that; progress of training is all reported again, as it is small.
        """
        self._unsure = True
        self._outage.failed(error, self._engine)

    async def _next_report(self) -> None:
        """Wait for the next heartbeat, or for a change and the changes that come right after it."""
        heartbeat = HEARTBEAT_S * (0.9 + 0.1 * random.random())  # noqa: S311 - spreads engines out, guards nothing
        with suppress(TimeoutError):
            async with asyncio.timeout(heartbeat):
                await self._changed.wait()
                await asyncio.sleep(COALESCE_S)


class _Outage:
    """Logs one line when Redis goes away, one for each further reason during the outage, and one when it is back."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._reasons = Reasons()

    def failed(self, error: Exception, engine: str) -> None:
        is_new = self._reasons.is_new(error)
        if self._since is None:
            self._since = time.monotonic()
            log.warning("map_lost", engine=engine, error=str(error), serving="continues")
        elif is_new:
            log.warning("map_still_lost", engine=engine, error=str(error))

    def over(self, engine: str) -> None:
        if self._since is not None:
            log.info("map_back", engine=engine, seconds=round(time.monotonic() - self._since, 2))
            self._since = None
            self._reasons.forget()
