"""The Redis half of observation: the placement map of every base, read again only if its pulse has changed.

It also remembers what the map itself cannot say: since when an engine has been away or not ready, and what the map
said before it was lost.
"""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec
import structlog
from redis.exceptions import ResponseError

from mint_contracts.errors import MapUnavailable
from mint_contracts.map_reader import MapReader, Pulse, known_of
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import EngineRecord, EngineView, MapState, Placement, WaveRecord
from mint_operator.observing.readiness import Readiness, watched
from mint_operator.planning.demand import coarse, followed
from mint_operator.planning.loading_progress import planning_view
from mint_operator.planning.shards import Shards
from mint_operator.planning.sizes import Size, learnt
from mint_operator.planning.snapshot import BaseMap

FULL_READ_S = 30.0  # read fully this often whatever the pulse says, to notice a lost write
FULL_READ_SHARE = 0.02  # of the time, at most: a large map is fully read less often
ENTRY_READ_S = 50e-6  # to read and decode a placement and its assignment: the operator logged 3.4 s for 64,000
AT_ONCE = 16
MOST_UNSEEN_S = 20.0  # of the time between two looks counts: nobody looks while the API server is away
SMOOTHED_S = 30.0
FULL_BATCH = 64  # requests that keep an engine busy: as many as one step decodes
MOST_SIZES = 65_536  # adapter sizes remembered; those of adapters that are held or placed always are

log = structlog.get_logger()


class _Memory(msgspec.Struct):
    """What is remembered about one base between looks."""

    pulse: Pulse | None = None
    state: MapState | None = None
    read_at: float = 0.0
    read_s: float = 0.0  # how long the last full read took
    views: dict[str, EngineView] = {}
    sizes: Shards[Size] = Shards()
    most_sizes: int = 0  # beyond this many, sizes of adapters neither held nor placed are forgotten
    in_flight: float = 0.0
    demand: Mapping[str, float] = {}
    looked_at: float = 0.0
    unwatched_s: float = 0.0  # in which Redis was away, or nobody looked: heartbeats ran out unseen; not counted
    remembered: Mapping[str, Placement] = {}
    recorded: Mapping[str, WaveRecord] = {}
    lost_at: float | None = None
    last_alive: dict[str, float] = {}
    readiness: Readiness = Readiness()
    unreadable: str = ""


class MapView:
    """The placement map as last read. `clock` is monotonic, in seconds.

    A base is claimed with the `writer` before it is first read: what is read then, no earlier operator changes later.
    """

    def __init__(
        self,
        reader: MapReader,
        writer: MapWriter,
        namespaces: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._namespaces = frozenset(namespaces)
        self._clock = clock
        self._memory: dict[str, _Memory] = {}
        self._missed = False  # whether the last look failed
        self.led = False  # whether Redis already had the complete map at the last look

    def invalidate(self, base: str) -> None:
        """Have the next look read this base again: a write to it may have been cut off."""
        if base in self._memory:
            self._memory[base].pulse = None

    def wrote(self, base: str, state: MapState) -> None:
        """Record what the operator, the only writer, has written: it holds until another version shows up."""
        memory = self._memory.get(base)
        if memory is not None and memory.pulse is not None:
            memory.state = state
            memory.pulse = msgspec.structs.replace(memory.pulse, version=state.version, epoch=self._writer.epoch)

    async def look(self, engines: Mapping[str, Sequence[str]]) -> dict[str, BaseMap]:
        """Return the map of every base in `engines` (base -> engines it should have now) and of every other in Redis.

        A base with records that this version cannot read is left out, as if unreachable; the others are unaffected.
        Raises StaleEpoch, and MapUnavailable; what was remembered stays.
        """
        try:
            self.led = await self._reader.led()
            known = [base for base in await self._reader.bases() if self._watched(base)]
            gate = asyncio.Semaphore(AT_ONCE)
            names = sorted({*known, *engines})
            maps = await asyncio.gather(*[self._look_at(base, engines.get(base, ()), gate) for base in names])
        except MapUnavailable:
            self._missed = True
            raise
        except ResponseError as error:  # Redis answers but is unusable, as while a script keeps it busy
            self._missed = True
            raise MapUnavailable("placement map", f"Redis refused: {error}") from error
        self._missed = False
        for base in self._memory.keys() - set(names):
            del self._memory[base]
        found = {base: each for base, each in zip(names, maps, strict=True) if each is not None}
        return found | {base: _unlisted(found[base]) for base in found.keys() - set(known)}

    def _watched(self, base: str) -> bool:
        """Whether a base is this operator's; bases of other namespaces belong to others that share this Redis."""
        return not self._namespaces or base.partition("/")[0] in self._namespaces

    def _claimed(self, memory: _Memory) -> bool:
        """Whether a base was last seen with this operator's epoch, or with none, as before the first write."""
        return memory.pulse is not None and memory.pulse.epoch in {None, self._writer.epoch}

    async def _look_at(self, base: str, engines: Sequence[str], gate: asyncio.Semaphore) -> BaseMap | None:
        memory = self._memory.setdefault(base, _Memory())
        try:
            found = await self._read(base, memory, engines, gate)
        except msgspec.DecodeError as error:  # written by another version of MinT
            if memory.unreadable != str(error):
                log.warning("placement map of a base not read", base=base, error=str(error))
            memory.unreadable, memory.pulse = str(error), None
            return None
        memory.unreadable = ""
        return found

    async def _read(self, base: str, memory: _Memory, engines: Sequence[str], gate: asyncio.Semaphore) -> BaseMap:
        async with gate:
            if not self._claimed(memory):
                await self._writer.claim(base)
            now = self._clock()
            pulse = await self._reader.pulse(base)
            last = memory.pulse
            stale = last is None or memory.state is None or now - memory.read_at > _every_s(memory)
            if stale or last is None or (last.version, last.epoch) != (pulse.version, pulse.epoch):
                read = await self._reader.state(base, self._named(memory, engines))
                if read != memory.state:  # keep an equal object, so that readers can compare by identity
                    memory.state = read
                memory.read_at, memory.read_s = now, self._clock() - now
                if stale:
                    memory.views.clear()
            views = await self._views(base, pulse, memory)
            silent = [name for name in engines if pulse.engines.get(name) is None]
            telling = await self._reader.telling(base, silent)
            if len(telling) < len(silent):
                await self._reader.confirm_writes(base)
            _forget_sizes(memory)
            counted_s = 0.0 if self._missed else MOST_UNSEEN_S
            memory.unwatched_s += max(0.0, now - memory.looked_at - counted_s)
            _smooth(memory, pulse, now)
            memory.pulse = pulse
        state = memory.state
        assert state is not None  # noqa: S101 - read above
        return self._base_map(memory, state, views, engines, now - memory.unwatched_s, telling)

    def _named(self, memory: _Memory, engines: Sequence[str]) -> list[str]:
        """Return the engines that may have assignments even if they never reported."""
        placed = {place.engine for each in memory.remembered.values() for place in each.places}
        return sorted({*engines, *placed})

    async def _views(self, base: str, pulse: Pulse, memory: _Memory) -> tuple[EngineView, ...]:
        """Return all engines' views; one with nothing new for planning stays the same object, whatever its load."""
        old = memory.views
        stale = [name for name, record in pulse.engines.items() if name not in old or _newer(old[name], record)]
        held = await self._reader.holdings(base, stale, known_of(old, pulse)) if stale else {}
        for holdings in held.values():
            if news := learnt(memory.sizes, holdings.values()):
                memory.sizes = memory.sizes.changed(news)
        views = {}
        for name, record in pulse.engines.items():
            view = old.get(name)
            if name in held:
                views[name] = EngineView(name, record, held[name])
            elif view is not None and _same(view.record, record):
                views[name] = view
            else:
                views[name] = EngineView(name, record, old[name].held)
        memory.views = views
        return tuple(views.values())

    def _base_map(
        self,
        memory: _Memory,
        state: MapState,
        views: tuple[EngineView, ...],
        engines: Sequence[str],
        now: float,
        telling: Collection[str],
    ) -> BaseMap:
        """Return what a look has found. `now` is by a clock that stands still while nothing is seen of engines."""
        if state.version is None:
            memory.lost_at = now if memory.lost_at is None else memory.lost_at
        else:
            memory.lost_at, memory.remembered, memory.recorded = None, state.placements, state.waves
        alive = {view.engine for view in views if view.record is not None} | set(telling)
        seen = memory.last_alive
        memory.last_alive = {name: now if name in alive else seen.get(name, now) for name in engines}
        memory.readiness = watched(memory.readiness, views, engines, telling, now)
        return BaseMap(
            state=state,
            engines=views,
            away_s={name: now - at for name, at in memory.last_alive.items() if name not in alive},
            unready_s=memory.readiness.unready_s(now),
            remembered=memory.remembered,
            recorded=memory.recorded,
            sizes=memory.sizes,
            busy=math.ceil(memory.in_flight / FULL_BATCH - 0.01),
            lost_s=0.0 if memory.lost_at is None else now - memory.lost_at,
            demand=coarse(memory.demand),
        )


def _unlisted(known: BaseMap) -> BaseMap:
    return msgspec.structs.replace(known, state=msgspec.structs.replace(known.state, listed=False))


def _every_s(memory: _Memory) -> float:
    """Return how often to read the full map, by the last read's duration and by the map's size, if it has grown."""
    entries = 0 if memory.state is None else len(memory.state.placements)
    return max(FULL_READ_S, max(memory.read_s, entries * ENTRY_READ_S) / FULL_READ_SHARE)


def _forget_sizes(memory: _Memory) -> None:
    """Bound the remembered sizes: loaded on demand, a catalog's million adapters pass through engines in time."""
    if memory.state is None or len(memory.sizes) <= max(MOST_SIZES, memory.most_sizes):
        return
    had = {name for view in memory.views.values() for name in view.held}
    had.update(memory.state.placements, *memory.state.assigned.values())
    memory.sizes = Shards({name: size for name, size in memory.sizes.items() if name in had})
    memory.most_sizes = 2 * len(memory.sizes)  # so that this is rare: it goes through all sizes


def _smooth(memory: _Memory, pulse: Pulse, now: float) -> None:
    """Update the exponentially weighted means of requests in flight: over all engines, and per adapter."""
    records = [record for record in pulse.engines.values() if record is not None]
    requests = sum(record.running + record.waiting for record in records)
    weight = 1.0 - math.exp(-(now - memory.looked_at) / SMOOTHED_S)
    memory.in_flight += weight * (requests - memory.in_flight)
    memory.demand = followed(memory.demand, [record.demand for record in records if record.demand], weight)
    memory.looked_at = now


def _newer(view: EngineView, record: EngineRecord | None) -> bool:
    """Whether an engine's holdings have changed since they were read."""
    if record is None:
        return False
    known = view.record
    return known is None or (known.incarnation, known.sequence) != (record.incarnation, record.sequence)


def _same(old: EngineRecord | None, new: EngineRecord | None) -> bool:
    """Whether two records agree on everything that planning uses."""
    return old is new or (old is not None and new is not None and _judged(old) == _judged(new))


def _judged(record: EngineRecord) -> object:
    """Return the fields of an engine's record that planning and statuses use; its current load is not among them."""
    return (
        record.incarnation,
        record.sequence,
        record.address,
        record.ready,
        record.slots_used,
        record.slots_total,
        record.training_bytes,
        record.policy_room,
        record.failure,
        planning_view(record.bringing),
    )
