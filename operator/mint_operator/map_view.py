"""The Redis half of observation: the placement map of every base, read again only where its pulse has changed.

It also remembers what the map itself cannot say: since when an engine is away, and what the map said before it was
lost.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from redis.exceptions import ResponseError

from mint_contracts.errors import MapUnavailable
from mint_contracts.map_reader import MapReader, Pulse
from mint_contracts.records import EngineRecord, EngineView, Held, MapState, Placement
from mint_operator.snapshot import BaseMap

FULL_READ_S = 30.0  # whatever the pulse says: a write that went astray is noticed by then
AT_ONCE = 16


class _Memory(msgspec.Struct):
    """What is kept of one base between looks."""

    pulse: Pulse | None = None
    state: MapState | None = None
    read_at: float = 0.0
    held: dict[str, tuple[tuple[int, int], dict[str, Held]]] = {}
    remembered: dict[str, Placement] = {}
    lost_at: float | None = None
    last_alive: dict[str, float] = {}


class MapView:
    """What Redis says. `clock` is monotonic, in seconds."""

    def __init__(
        self, reader: MapReader, namespaces: Sequence[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._reader = reader
        self._namespaces = frozenset(namespaces)
        self._clock = clock
        self._memory: dict[str, _Memory] = {}

    def invalidate(self, base: str) -> None:
        """Read this base anew next time: a write to it may have been cut off."""
        if base in self._memory:
            self._memory[base].pulse = None

    async def look(self, engines: Mapping[str, Sequence[str]]) -> dict[str, BaseMap]:
        """The map of every base in `engines` (base -> engines that it should have now) and every other it knows.

        Raises MapUnavailable; what was remembered stays.
        """
        try:
            known = [base for base in await self._reader.bases() if self._watched(base)]
            gate = asyncio.Semaphore(AT_ONCE)
            names = sorted({*known, *engines})
            maps = await asyncio.gather(*[self._look_at(base, engines.get(base, ()), gate) for base in names])
        except ResponseError as error:  # read-only replica, out of memory: Redis answers, and is of no use
            raise MapUnavailable("placement map", f"Redis refused: {error}") from error
        for base in self._memory.keys() - set(names):
            del self._memory[base]
        return dict(zip(names, maps, strict=True))

    def _watched(self, base: str) -> bool:
        """Bases of other namespaces belong to another operator that shares this Redis."""
        return not self._namespaces or base.partition("/")[0] in self._namespaces

    async def _look_at(self, base: str, engines: Sequence[str], gate: asyncio.Semaphore) -> BaseMap:
        async with gate:
            memory, now = self._memory.setdefault(base, _Memory()), self._clock()
            pulse = await self._reader.pulse(base)
            last = memory.pulse
            stale = last is None or memory.state is None or now - memory.read_at > FULL_READ_S
            if stale or last is None or (last.version, last.epoch) != (pulse.version, pulse.epoch):
                memory.state = await self._reader.state(base, self._named(memory, engines))
                memory.read_at = now
                if stale:
                    memory.held.clear()
            views = tuple([await self._view(base, name, record, memory) for name, record in pulse.engines.items()])
            memory.pulse = pulse
        state = memory.state
        assert state is not None  # noqa: S101 - read above
        return self._base_map(memory, state, views, engines, now)

    def _named(self, memory: _Memory, engines: Sequence[str]) -> list[str]:
        """Engines whose assignments may exist although they never reported."""
        placed = {place.engine for each in memory.remembered.values() for place in each.places}
        return sorted({*engines, *placed})

    async def _view(self, base: str, name: str, record: EngineRecord | None, memory: _Memory) -> EngineView:
        cached = memory.held.get(name)
        stamp = (record.incarnation, record.sequence) if record else (cached[0] if cached else (0, 0))
        if cached is None or cached[0] != stamp:
            cached = (stamp, await self._reader.held(base, name))
            memory.held[name] = cached
        return EngineView(engine=name, record=record, held=cached[1])

    def _base_map(
        self, memory: _Memory, state: MapState, views: tuple[EngineView, ...], engines: Sequence[str], now: float
    ) -> BaseMap:
        if state.version is None:
            memory.lost_at = now if memory.lost_at is None else memory.lost_at
        else:
            memory.lost_at, memory.remembered = None, state.placements
        alive = {view.engine for view in views if view.record is not None}
        seen = memory.last_alive
        memory.last_alive = {name: now if name in alive else seen.get(name, now) for name in engines}
        return BaseMap(
            state=state,
            engines=views,
            away_s={name: now - at for name, at in memory.last_alive.items() if name not in alive},
            remembered=memory.remembered,
            lost_s=0.0 if memory.lost_at is None else now - memory.lost_at,
        )
