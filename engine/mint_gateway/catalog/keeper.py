"""Keeping the catalogs in Redis complete: they are reread from manifests if Redis lost them or missed a part.

Any gateway does this, one at a time; the others see that it is done. Doing it twice does no harm.
"""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from contextlib import suppress

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError

from mint_contracts import keys
from mint_contracts.awaiting import end_tasks
from mint_contracts.backoff import delay_s
from mint_contracts.catalog_calls import incomplete
from mint_contracts.catalog_parts import Parts
from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.catalog_writer import CatalogWriter
from mint_contracts.entries import Row
from mint_contracts.errors import MapUnavailable, MintError
from mint_contracts.functions import bounded
from mint_contracts.part_names import Span, spans
from mint_contracts.source import Source
from mint_gateway.catalog.compaction import compact

LOOK_S = 1.0
DEFECT_PAUSE_S = 30.0
LONGEST_RETRY_S = 5.0  # half the time that a registration waits for a catalog
SWEEP_S = 60.0
ON_ITS_WAY_S = 120.0  # the writer of a part younger than this may still apply it to Redis
RETIRED_KEPT_S = 7 * 86_400.0  # in the manifests: no Redis is restored to an older state than this
HOLD_S = 15.0  # a keeper that has not renewed its lock for this long is gone
READ_AHEAD = 4  # parts

_US = 1_000_000
_log = structlog.get_logger()


class Keeper:
    """Maintains the catalogs of all bases. `manifests()` returns where each base keeps its manifests.

    `stored` returns whether a base also has an adapter store, which may know names that its catalog has retired.
    """

    def __init__(
        self,
        redis: Redis,
        manifests: Callable[[], Mapping[str, Source]],
        stored: Callable[[str], bool] = lambda base: True,
    ) -> None:
        self._redis = redis
        self._reader, self._writer = CatalogReader(redis), CatalogWriter(redis)
        self._manifests, self._stored = manifests, stored
        self._swept: dict[str, float] = {}
        self._seen: dict[str, tuple[str, int]] = {}  # Redis' run_id and the catalog's version when last seen
        self._failed: dict[str, int] = {}  # consecutive failures
        self._token = secrets.token_hex(8)
        self._woken = asyncio.Event()

    @property
    def failing(self) -> int:
        """The number of catalogs whose last maintenance failed."""
        return len(self._failed.keys() & self._manifests().keys())

    def wake(self) -> None:
        """Look at all catalogs now, because somebody is waiting."""
        self._woken.set()

    async def run(self) -> None:
        """Look at every catalog once a second, less often while that fails, until cancelled.

        Catalogs are handled concurrently: none waits until another has been read.
        """
        looking: dict[tuple[str, Source], asyncio.Task[None]] = {}
        try:
            while True:
                self._woken.clear()
                looking = {each: task for each, task in looking.items() if not task.done()}
                wanted = set(self._manifests().items())
                self._forget_all_but({base for base, _ in wanted})
                for each in looking.keys() - wanted:  # the base is gone, or its manifests have moved
                    _cancel_once(looking[each])
                for each in wanted - looking.keys():
                    looking[each] = asyncio.create_task(self._looked(*each))
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._woken.wait()
        finally:
            for task in looking.values():
                _cancel_once(task)
            await asyncio.gather(*looking.values(), return_exceptions=True)

    def _forget_all_but(self, bases: Set[str]) -> None:
        for known in (self._swept, self._seen, self._failed):
            for base in known.keys() - bases:
                del known[base]

    async def look(self, base: str, manifests: Source) -> None:
        """Complete one catalog if needed, or sweep it when due. Raises MapUnavailable, and the store's errors."""
        state, start = await self._reader.state(base), await self._start()
        seen = self._seen.get(base)
        if not state.is_complete_copy_of(manifests):
            done = await self._alone(base, lambda: self.rebuild(base, manifests))
        elif seen is None or start != seen[0] or state.version < seen[1]:
            done = await self._alone(base, lambda: self.sweep(base, manifests, young=True))
        elif time.monotonic() - self._swept.get(base, 0.0) > SWEEP_S:
            done = await self._alone(base, lambda: self.sweep(base, manifests))
        else:
            done = True
        if done:
            self._seen[base] = start, state.version

    async def _looked(self, base: str, manifests: Source) -> None:
        try:
            await self.look(base, manifests)
            self._failed.pop(base, None)
        except (MintError, ResponseError) as error:
            attempt = self._failed[base] = self._failed.get(base, 0) + 1
            wait_s = delay_s(attempt, first_s=LOOK_S, cap_s=LONGEST_RETRY_S)
            _log.warning("catalog maintenance failed", base_model=base, error=str(error), again_in_s=round(wait_s, 1))
            await asyncio.sleep(wait_s)
        except Exception:  # noqa: BLE001 - whatever is wrong with one catalog, the others are maintained
            self._failed[base] = self._failed.get(base, 0) + 1
            _log.exception("catalog maintenance failed", base_model=base)
            await asyncio.sleep(DEFECT_PAUSE_S)

    async def rebuild(self, base: str, manifests: Source) -> int:
        """Reread every part into Redis, oldest first; return how many entries were read."""
        began, parts, count, last = time.monotonic(), Parts(manifests), 0, 0
        start, copy = await self._start(), await self._writer.begin(base, manifests.uri)
        counted = _spans(base, await parts.names())
        async for name, rows in self._read(parts, _names(counted)):
            await self._writer.apply(base, rows, name, copy=copy)
            count, last = count + len(rows), max([last, *[at for at, _ in rows]])
        await self._unchanged(base, start)
        settled = _settled(counted, await self._settling())
        await self._writer.complete(base, copy, max([last, *[span.last for span in counted]]), settled)
        await self._forget_parts(base, settled)
        _log.info(
            "catalog rebuilt from its manifests",
            base_model=base,
            parts=len(_names(counted)),
            entries=count,
            seconds=round(time.monotonic() - began, 2),
        )
        return count

    async def sweep(self, base: str, manifests: Source, *, young: bool = False) -> list[str]:
        """Apply parts that are in the store but not in Redis, whose writers ended in between. Return their names.

        Parts that their writers may still apply are left out unless `young`: a Redis that came back may have lost its
        last writes, and applying a part twice does no harm. Then compact the parts (see compaction.py) and tidy up.
        """
        parts, start, before = Parts(manifests), await self._start(), await self._settling()
        names = await parts.names()
        counted = _spans(base, names)
        # "settled" is written by gateways of an earlier version, which consider fewer parts to be in.
        *floors, copy = await bounded(lambda: self._redis.hmget(keys.catalog(base), ("settled", "through", "copy")))
        known = set(await bounded(lambda: self._redis.zrange(keys.catalog(base, "parts"), 0, -1)))
        first, last = max(int(floor or 0) for floor in floors), math.inf if young else before
        missing = [span for span in counted if first < span.last and span.first < last]
        missed = [name for name in _names(missing) if name not in known]
        if missed:  # a Redis that has lost these may have a clock behind them: what is registered now must come later
            await self._writer.complete(base, copy, max(span.last for span in counted), first)
        async for name, rows in self._read(parts, missed):
            await self._writer.apply(base, rows, name, copy=copy)
            _log.info("catalog part recovered", base_model=base, part=name, entries=len(rows))
        await self._unchanged(base, start)
        settled = _settled(counted, before)
        await bounded(lambda: self._redis.hset(keys.catalog(base), "through", settled))
        await self._forget_parts(base, settled)
        await self._compact(base, manifests, names, settled, before - int(RETIRED_KEPT_S * _US))
        await parts.tidy()
        return missed

    async def _compact(self, base: str, manifests: Source, names: Sequence[str], settled: int, horizon: int) -> None:
        stored, state = self._stored(base), await self._reader.state(base)
        live = state.count + state.older + (state.retired if stored else 0)
        if not state.tallied:  # the number of live rows is unknown
            live = 1 << 63

        async def go_on() -> None:  # stop if Redis loses the catalog: it is rebuilt first
            if not (await self._reader.state(base)).is_complete_copy_of(manifests):
                raise incomplete(base)

        await compact(Parts(manifests), names, settled, live, horizon, stored=stored, go_on=go_on)

    async def _start(self) -> str:
        """Return the run_id of Redis, which differs between servers and between starts."""
        return str((await bounded(lambda: self._redis.info("server")))["run_id"])

    async def _unchanged(self, base: str, start: str) -> None:
        """Raise MapUnavailable if another Redis took over: it may know the copy without all its entries."""
        if await self._start() != start:
            raise incomplete(base)

    async def _settling(self) -> int:
        """Return the sequence before which parts are in or their writers have ended, from the clock of Redis."""
        seconds, microseconds = await bounded(lambda: self._redis.time())
        return int((seconds - ON_ITS_WAY_S) * _US) + int(microseconds)

    async def _forget_parts(self, base: str, settled: int) -> None:
        """Forget the names of parts up to the sequence up to which all are in."""
        await bounded(lambda: self._redis.zremrangebyscore(keys.catalog(base, "parts"), "-inf", settled))
        self._swept[base] = time.monotonic()

    async def _read(self, parts: Parts, names: Sequence[str]) -> AsyncIterator[tuple[str, list[Row]]]:
        """Yield parts in order, reading READ_AHEAD of them ahead."""
        waiting = list(reversed(names))
        reading: list[tuple[str, asyncio.Task[list[Row]]]] = []
        try:
            while waiting or reading:
                while waiting and len(reading) < READ_AHEAD:
                    name = waiting.pop()
                    reading.append((name, asyncio.create_task(parts.read(name))))
                name, task = reading.pop(0)
                yield name, await task
        finally:
            for _, task in reading:
                task.cancel()

    async def _alone(self, base: str, work: Callable[[], Awaitable[object]]) -> bool:
        """Do the work under the base's lock in Redis. Return False if another gateway holds it."""
        key = keys.catalog(base, "keeper")
        if not await bounded(lambda: self._redis.set(key, self._token, nx=True, px=int(HOLD_S * 1000))):
            return False
        holding = asyncio.create_task(self._hold(key))
        try:
            await work()
        finally:
            await end_tasks([holding])
            # The lock expires by itself. Another gateway may have taken it just now, or Redis takes no writes.
            with suppress(MapUnavailable, ResponseError):
                await bounded(lambda: self._if_ours(key, lambda line: line.delete(key)))
        return True

    async def _hold(self, key: str) -> None:
        """Renew the lock until cancelled: a part may take long to read."""
        while True:
            await asyncio.sleep(HOLD_S / 3)
            with suppress(MapUnavailable, ResponseError):
                await bounded(lambda: self._if_ours(key, lambda line: line.pexpire(key, int(HOLD_S * 1000))))

    async def _if_ours(self, key: str, change: Callable[[Pipeline], object]) -> None:
        """Change the lock's key atomically, and only while this gateway holds it."""
        async with self._redis.pipeline() as line:
            await line.watch(key)
            if await line.get(key) == self._token:
                line.multi()  # type: ignore[no-untyped-call]
                change(line)
                await line.execute()


def _cancel_once(task: asyncio.Task[None]) -> None:
    """Cancel a task unless that was done before: it still has to release its lock."""
    if not task.cancelling():
        task.cancel()


def _spans(base: str, names: Sequence[str]) -> list[Span]:
    counted = spans(names)
    for span in counted:
        if span.torn:
            message = "catalog run lacks pieces; put them back and have it all read again (docs/platform.md, Backups)"
            _log.error(message, base_model=base, run=span.names[-1], pieces=len(span.names))
    return counted


def _settled(counted: Sequence[Span], before: int) -> int:
    """Return up to which sequence parts are in, if those that begin `before` are."""
    return max([span.last for span in counted if span.first < before], default=0)


def _names(counted: Sequence[Span]) -> list[str]:
    return [name for span in counted for name in span.names]
