"""Following the placement map: one immutable MapView per base, replaced as a whole when the map changes.

While Redis is away, or takes no heartbeats, the last views keep serving; nothing here ever blocks a request.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Set
from contextlib import asynccontextmanager

import msgspec
import structlog
from redis.exceptions import ResponseError

from mint_contracts.backoff import delay_s
from mint_contracts.errors import MapUnavailable
from mint_contracts.map_reader import MapReader, Pulse, known_of
from mint_contracts.map_reporter import HEARTBEAT_TTL_S
from mint_contracts.reasons import Reasons
from mint_contracts.records import Placement
from mint_gateway.security.scope import granted
from mint_gateway.security.scope_filter import within
from mint_gateway.view import MapView, lost_something, merge, stale_holdings

POLL_S = 0.5
QUIET_S = 0.05  # at least, between two readings, however many hints arrive
HINTS_AT_ONCE = 1000
RESYNC_S = 30.0  # interval between full readings, whatever the versions say
EMPTY_S = 30.0  # how long an empty map counts as lost, not as complete, if no operator says that it is
FORGET_S = 60.0  # how long a base that Redis lost is kept, with no engine alive
RECONNECT_FIRST_S = 0.1
RECONNECT_CAP_S = 2.0

_log = structlog.get_logger()


class _Following(msgspec.Struct):
    """The state of following one base. Times are on the event loop's clock."""

    view: MapView
    settled_at: float  # from then on, a missing heartbeat means a dead engine
    resync_at: float = 0.0
    reported: Set[str] = frozenset()  # engines in the last pulse
    lost: bool = False  # Redis knows less about the base than before
    unnamed_since: float | None = None  # since when Redis neither names the base nor says that it was removed
    unreadable: str = ""  # why the last reading could not be decoded


class Mirror:
    """The gateway's copy of the placement map. It may be stale while `away`."""

    def __init__(self, reader: MapReader, on_read: Callable[[], None], on_outage: Callable[[], None]) -> None:
        """`on_read` is called after each reading, `on_outage` once each time that Redis goes away."""
        self._reader = reader
        self._on_read, self._on_outage = on_read, on_outage
        self._following: dict[str, _Following] = {}
        self._views: Mapping[str, MapView] = {}
        self._read_at: float | None = None
        self._empty_since: float | None = None  # when an empty map was first read, by the event loop's clock
        self._answering: bool | None = None  # whether Redis answers; None: not asked yet
        self._reasons = Reasons()  # of this outage
        self.first_read = asyncio.Event()  # set once the complete map has been read

    @property
    def views(self) -> Mapping[str, MapView]:
        """A snapshot of every base's view, by name, which later changes do not touch. For the gateway's own work:
        requests are answered from `views_in_scope`."""
        return self._views

    @property
    def addresses(self) -> set[str]:
        """The addresses of all known engines."""
        return {engine.record.address for view in self._views.values() for engine in view.engines.values()}

    def views_in_scope(self) -> Mapping[str, MapView]:
        """Return `views` within the scope of the current request's key.

        Every name that a request's answer may depend on is looked up here. Raises MapUnavailable before the first
        reading.
        """
        if not self.first_read.is_set():
            raise MapUnavailable("gateway", "has not read the placement map yet; retry", retry_after_s=1.0)
        return within(self._views, granted.get())

    @property
    def away(self) -> bool:
        """Whether Redis does not answer now, so that the views' `alive` flags cannot be relied on."""
        return not self._answering

    def age_s(self) -> float:
        """Return the seconds since the map was last read, infinity before the first time. Any thread may call it."""
        return float("inf") if self._read_at is None else time.monotonic() - self._read_at

    async def run(self) -> None:
        """Follow the map until cancelled."""
        failures = 0
        while True:
            try:
                async with self._hints() as wait:
                    while True:
                        await self._read()
                        failures = 0
                        await asyncio.sleep(QUIET_S)
                        await wait(POLL_S)
            except (MapUnavailable, ResponseError) as error:
                failures += 1
                self._note_outage(error)
            await asyncio.sleep(delay_s(failures, first_s=RECONNECT_FIRST_S, cap_s=RECONNECT_CAP_S))

    @asynccontextmanager
    async def _hints(self) -> AsyncIterator[Callable[[float], Awaitable[None]]]:
        """Yield `wait(timeout_s)`, which returns on the first hint and drains those that have arrived with it."""
        async with self._reader.changes() as hint:

            async def wait(timeout_s: float) -> None:
                for _ in range(HINTS_AT_ONCE):
                    if await hint(timeout_s) is None:
                        return
                    timeout_s = 0.0

            yield wait

    async def _read(self) -> None:
        """Read what changed in each base and replace those views."""
        loop = asyncio.get_running_loop()
        named = await self._reader.bases()
        for base in sorted({*named, *self._following}):
            following = self._following.get(base)
            if following is None:
                following = _Following(view=MapView(base=base), settled_at=loop.time())
            try:
                pulse, rereporting = await self._pulse(following.view)
                await self._follow(following, pulse, rereporting, loop.time())
            except msgspec.DecodeError as error:
                # A record from another version of MinT: this base keeps its last view, the others go on.
                self._note_unreadable(following, str(error))
            else:
                following.unreadable = ""
                if base in named:
                    following.unnamed_since = None
                elif await self._gone(following, pulse, loop.time(), others=bool(named)):
                    self._following.pop(base, None)
                    _log.info("base model left the map", base_model=base)
                    continue
            self._following[base] = following
        self._swap()
        if not self.first_read.is_set() and (named or await self._reader.led() or self._is_empty_for_long()):
            self.first_read.set()

    async def _pulse(self, view: MapView) -> tuple[Pulse, Mapping[str, int]]:
        """Return the base's pulse and, of the engines silent in it, those now reporting all their holdings again.

        Raises MapUnavailable if engines are silent while Redis takes no writes.
        """
        pulse = await self._reader.pulse(view.base)
        silent = [n for n, engine in view.engines.items() if engine.alive and pulse.engines.get(n) is None]
        rereporting = await self._reader.telling(view.base, silent)
        if len(rereporting) < len(silent):
            await self._reader.confirm_writes(view.base)  # else their heartbeats may only not have been taken
            pulse = await self._reader.pulse(view.base)  # now has the engines that finished reporting in between
        return pulse, rereporting

    async def _follow(self, following: _Following, pulse: Pulse, rereporting: Mapping[str, int], now: float) -> None:
        base, view = following.view.base, following.view
        was_lost, following.lost = following.lost, lost_something(view, pulse)
        again = not following.reported <= pulse.engines.keys()  # lost once more, before engines had reported it all
        following.reported = pulse.engines.keys()
        if following.lost and (again or not was_lost):
            following.settled_at = max(following.settled_at, now + HEARTBEAT_TTL_S)
            view = msgspec.structs.replace(view, version=None)
            _log.warning("map lost its data; serving from the last view", base_model=base)
        whole = now >= following.resync_at
        if pulse.version is None:
            announced = await self._reader.base_record(base)
            view = msgspec.structs.replace(view, version=None, announced=announced)
        elif whole or pulse.version != view.version:
            record = await self._reader.base_record(base)
            placements = await self._placements(view, pulse.version, whole=whole)
            view = msgspec.structs.replace(
                view,
                version=pulse.version,
                record=record or view.record,
                announced=None,
                placements=placements,
            )
        names = [n for n, r in pulse.engines.items() if r is not None] if whole else stale_holdings(view, pulse)
        held = await self._reader.holdings(base, names, {} if whole else known_of(view.engines, pulse))
        following.view = merge(view, pulse, held, settled=now >= following.settled_at, rereporting=rereporting)
        if whole:
            following.resync_at = now + RESYNC_S

    async def _placements(self, view: MapView, version: int, *, whole: bool) -> Mapping[str, Placement]:
        """Return the base's placements at this version or later: if possible, read only those that have changed."""
        read = None
        if not whole and view.version is not None:
            read = await self._reader.placements_since(view.base, view.placements, view.version, version)
        return await self._reader.placements(view.base) if read is None else read

    async def _gone(self, following: _Following, pulse: Pulse, now: float, *, others: bool) -> bool:
        """Return whether an unnamed base was removed (its epoch stays), or has been lost for more than FORGET_S."""
        if pulse.epoch is not None:  # also true if the base was named and written again since the names were read
            return following.view.base not in await self._reader.bases()
        if following.unnamed_since is None:
            following.unnamed_since = now
        alive = any(engine.alive for engine in following.view.engines.values())
        return others and not alive and now - following.unnamed_since > FORGET_S

    def _swap(self) -> None:
        if not self._answering:
            _log.info("following the placement map", bases=len(self._following))
        self._answering = True
        self._reasons.forget()
        self._read_at = time.monotonic()
        self._views = {base: following.view for base, following in self._following.items()}
        self._on_read()

    def _is_empty_for_long(self) -> bool:
        now = asyncio.get_running_loop().time()
        self._empty_since = now if self._empty_since is None else self._empty_since
        return now - self._empty_since >= EMPTY_S

    def _note_unreadable(self, following: _Following, error: str) -> None:
        if following.unreadable != error:
            following.unreadable = error
            _log.error("map holds a record that cannot be read", base_model=following.view.base, error=error)

    def _note_outage(self, error: Exception) -> None:
        is_new = self._reasons.is_new(error)
        if self._answering is not False:
            self._on_outage()
            _log.warning("placement map is unavailable; serving from the last view", error=str(error))
        elif is_new:
            _log.warning("placement map is still unavailable", error=str(error))
        self._answering = False
        # Heartbeats may expire unseen: engines get one heartbeat's time to report again, and everything is reread.
        settled_at = asyncio.get_running_loop().time() + HEARTBEAT_TTL_S
        for following in self._following.values():
            following.settled_at, following.resync_at = settled_at, 0.0
