"""The page's lists, within the key's scope, from the mirror's views and the wave records in Redis."""

import asyncio
from collections.abc import Mapping

import msgspec

from mint_contracts.errors import MapUnavailable
from mint_contracts.map_reader import MapReader
from mint_contracts.records import TRAIN, WaveRecord
from mint_gateway.mirror import Mirror
from mint_gateway.page import bases, waves
from mint_gateway.page.bases import SeenBase, Tally, Total
from mint_gateway.page.pages import Asked
from mint_gateway.page.waves import Serving, Training
from mint_gateway.security.scope import granted
from mint_gateway.security.scope_filter import waves_within
from mint_gateway.time_slices import TimeSlices
from mint_gateway.view import MapView
from mint_gateway.waves.explain import copies
from mint_gateway.waves.phase import Copies
from mint_gateway.waves.watch import Standing, WaveWatch

LOOK_S = 1.0  # at least, between two readings of one base's waves, however many look
MOST_TALLIES = 100_000  # most cached counts: one per engine and scope of a key


class Bases(msgspec.Struct, frozen=True):
    """A page of base models. `map_away`: Redis does not answer, so it is unknown which engines are alive."""

    bases: list[SeenBase]
    total: Total  # of all pages
    next: str  # the next page's `after`; empty after the last
    map_away: bool


class Waves(msgspec.Struct, frozen=True):
    """A page of serving or of training waves, and how many there are on all pages.

    `incomplete` are the bases of which the map does not know all waves now.
    """

    waves: list[Serving] | list[Training]
    next: str
    total: int
    pending: int  # not admitted, on all pages
    incomplete: list[str]


class _Reading(msgspec.Struct):
    lock: asyncio.Lock
    read_at: float = float("-inf")
    records: Mapping[str, WaveRecord] = {}
    within: dict[object, Mapping[str, WaveRecord]] = {}  # the records restricted to each scope


class Overview:
    """Lists bases and waves. Reads each base's waves at most once per LOOK_S, and recounts only what has changed."""

    def __init__(self, mirror: Mirror, reader: MapReader, watch: WaveWatch) -> None:
        self._mirror, self._reader, self._watch = mirror, reader, watch
        self._readings: dict[str, _Reading] = {}
        self._tallies: dict[tuple[str, str, object], tuple[tuple[int, int], Tally]] = {}
        self._placed: dict[tuple[str, object], tuple[int | None, int]] = {}

    async def bases(self, asked: Asked) -> Bases:
        """Return a page of base models. Raises MapUnavailable before the map was read."""
        views = dict(self._mirror.views_in_scope())  # so that each view is restricted only once
        names, following = asked.of(views)
        self._forget()
        slices = TimeSlices()
        placed = {}
        for base, view in views.items():
            placed[base] = self._count_placed(view)
            await slices.rest()
        found = []
        for base in names:
            tallies = {}
            for engine in views[base].engines:
                tallies[engine] = self._tally(views[base], engine)
                await slices.rest()
            found.append(bases.seen(views[base], placed[base], tallies))
        total = bases.total(list(views.values()), sum(placed.values()), all_open=granted.get().adapters is None)
        return Bases(found, total, following, self._mirror.away)

    async def serving(self, asked: Asked) -> Waves:
        """Return a page of the serving waves. Raises MapUnavailable before the map was read."""
        views, incomplete = dict(self._mirror.views_in_scope()), set[str]()
        records = await self._all_records(views, incomplete)
        homes = {w: base for base, of in records.items() for w, each in of.items() if each.chosen_by != TRAIN}
        names, following = asked.of(homes)
        found: dict[str, Serving] = {}
        for base in {homes[name] for name in names}:
            wanted = {name: records[base][name] for name in names if homes[name] == base}
            counted = await self._count(views[base], wanted)
            found |= {name: waves.serving(base, each, counted[name]) for name, each in wanted.items()}
        pending = sum(not records[base][name].admitted for name, base in homes.items())
        return Waves([found[name] for name in names], following, len(homes), pending, sorted(incomplete))

    async def training(self, asked: Asked) -> Waves:
        """Return a page of the training waves. Raises MapUnavailable before the map was read."""
        views, incomplete = dict(self._mirror.views_in_scope()), set[str]()
        standings: dict[str, Standing] = {}  # by wave, its base's
        records: dict[str, tuple[str, WaveRecord]] = {}
        for base, of in (await self._all_records(views, incomplete)).items():
            records |= {wave: (base, each) for wave, each in of.items() if each.chosen_by == TRAIN}
            try:
                standing = await self._watch.standing(base)
            except MapUnavailable:
                incomplete.add(base)
            else:
                standings |= dict.fromkeys(standing.training, standing)
        every = standings.keys() | records.keys()
        names, following = asked.of(every)
        slices = TimeSlices()
        found = []
        for name in names:
            begun = standings.get(name)
            found.append(waves.training(begun.aggregate(name)) if begun else waves.not_training(*records[name]))
            await slices.rest()
        pending = sum(not each.admitted for _, each in records.values())
        return Waves(found, following, len(every), pending, sorted(incomplete))

    async def _all_records(
        self, views: Mapping[str, MapView], incomplete: set[str]
    ) -> Mapping[str, Mapping[str, WaveRecord]]:
        """Return each base's waves. Bases are in reverse order so that if two have one wave, the first base wins.

        Adds to `incomplete` the bases of which the map does not know all waves now.
        """
        found = {}
        for base, view in sorted(views.items(), reverse=True):
            try:
                found[base] = await self._records(view)
            except MapUnavailable:
                found[base] = {}
                incomplete.add(base)
            if view.version is None:
                incomplete.add(base)
        return found

    async def _records(self, view: MapView) -> Mapping[str, WaveRecord]:
        """Return the base's waves within the key's scope; the last known ones while the map is not complete."""
        reading = self._readings.setdefault(view.base, _Reading(lock=asyncio.Lock()))
        async with reading.lock:
            now = asyncio.get_running_loop().time()
            if now - reading.read_at >= LOOK_S and view.version is not None:
                reading.records, reading.within = await self._reader.waves(view.base), {}
                reading.read_at = now
        scope = granted.get()
        if scope not in reading.within:
            reading.within[scope] = waves_within(reading.records, scope)
        return reading.within[scope]

    async def _count(self, view: MapView, records: Mapping[str, WaveRecord]) -> Mapping[str, Copies]:
        counted = {name: Copies() for name in records}
        if not any(each.admitted for each in records.values()):
            return counted
        slices = TimeSlices()
        for wave, each in copies(view, records):
            counted[wave].count(each)
            await slices.rest()
        return counted

    def _tally(self, view: MapView, name: str) -> Tally:
        engine = view.engines[name]
        key, edition = (view.base, name, view.scope.adapters), (engine.record.incarnation, engine.record.sequence)
        known = self._tallies.get(key)
        if known is None or known[0] != edition:
            known = self._tallies[key] = edition, bases.tally(engine.held)
        return known[1]

    def _count_placed(self, view: MapView) -> int:
        """Return how many adapters are placed on the base. Cached: counting a restricted view checks each one."""
        key = view.base, view.scope.adapters
        known = self._placed.get(key)
        if known is None or known[0] != view.version or view.version is None:
            known = self._placed[key] = view.version, len(view.placements)
        return known[1]

    def _forget(self) -> None:
        """Drop the readings of bases that are gone, and all counts once there are too many of them."""
        views = self._mirror.views
        self._readings = {base: each for base, each in self._readings.items() if base in views}
        if len(self._tallies) + len(self._placed) > MOST_TALLIES:
            self._tallies.clear()
            self._placed.clear()
