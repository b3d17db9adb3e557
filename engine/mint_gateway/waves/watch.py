"""Following training waves in the map: one reading of a base serves every watcher of its waves."""

import asyncio
from collections.abc import AsyncGenerator, Mapping

import msgspec

from mint_contracts.errors import MapUnavailable, NotFound
from mint_contracts.names import check_wave
from mint_contracts.train_reader import TrainReader
from mint_contracts.training_pb2 import WaveProgress
from mint_contracts.training_records import WaveTraining
from mint_contracts.training_reports import LatestReports, Progresses
from mint_gateway.inflight import InFlight
from mint_gateway.mirror import Mirror
from mint_gateway.resolve import resolve
from mint_gateway.security.scope import granted
from mint_gateway.security.scope_filter import progresses_within, training_within
from mint_gateway.view import incomplete
from mint_gateway.waves.history import History
from mint_gateway.waves.progress import (
    OVER,
    aggregate,
    newest_reports,
    untrained,
    wave_progress,
    with_history,
    with_last_reports,
)

MOST_CURVES = 256  # of policies in one message: 1 MB
LOOK_S = 0.5  # at least, between two readings of one base, however many watch
REREAD_S = 10.0  # waves' records, whose examples may be megabytes, otherwise only when they change
RETRY_AFTER_S = 5.0


class _Reading(msgspec.Struct):
    """One base's training as last read while the map knew its waves; `known`: the map knows them now."""

    lock: asyncio.Lock
    read_at: float = float("-inf")
    known: bool = False
    training: Mapping[str, WaveTraining] = {}
    edition: int | None = None  # of `training`
    training_at: float = float("-inf")  # when that was read
    progresses: Progresses = {}


class Standing(msgspec.Struct, frozen=True):
    """The state of one base's training waves. `known`: the map knows it now; otherwise it is the last known state."""

    base: str
    known: bool
    training: Mapping[str, WaveTraining]
    progresses: Progresses

    def words(self, training: WaveTraining) -> LatestReports:
        """Return the newest report on each of a wave's policies."""
        return newest_reports(training, self.progresses)

    def aggregate(self, wave: str) -> WaveProgress:
        """Return one wave's progress in aggregate, without its policies."""
        training = self.training[wave]
        return aggregate(self.base, training, self.words(training))


class WaveWatch:
    """The training waves of the bases that the mirror knows; each watcher sees what its key opens."""

    def __init__(self, reader: TrainReader, mirror: Mirror, most: int) -> None:
        """`most` bounds the watches in flight."""
        self._reader = reader
        self._mirror = mirror
        self._readings: dict[str, _Reading] = {}
        self._watching = InFlight(most, "watches of waves", RETRY_AFTER_S)

    async def list(self, base: str) -> list[WaveProgress]:
        """Return all training waves of one base or of all, in aggregate. Raises BaseModelNotFound, MapUnavailable."""
        found = []
        views = self._mirror.views_in_scope()
        for name in [resolve(views, base).base] if base else sorted(views):
            standing = await self.standing(name)
            if not standing.known:
                raise incomplete(name)
            found += [standing.aggregate(wave) for wave in sorted(standing.training)]
        return found

    async def standing(self, base: str) -> Standing:
        """Return the state of the base's training waves in the key's scope. Raises MapUnavailable without Redis."""
        reading, scope = await self._read(base), granted.get()
        training, progresses = training_within(reading.training, scope), progresses_within(reading.progresses, scope)
        return Standing(base, reading.known, training, progresses)

    async def page(self, wave: str, start: int, limit: int, points: int) -> WaveProgress:
        """Return the wave's progress with `limit` policies from `start` on, each with its last `points` rewards.

        Raises as `watch` does.
        """
        standing, training = await self._find(check_wave(wave))
        names = training.policies[start : start + limit]
        rewards = await self._reader.rewards(standing.base, dict.fromkeys(names, 0), points)
        return with_history(wave_progress(standing.base, training, standing.words(training), names), rewards)

    async def watch(
        self, wave: str, *, history: bool, new_rewards_only: bool, curves: bool
    ) -> AsyncGenerator[WaveProgress, None]:
        """Yield the wave's progress now, perhaps with curves, and at each change until it is over.

        While the map has lost its data, the last known progress stays. Raises NotFound for a wave that the map does
        not know (any more), Overloaded if too many clients watch, and MapUnavailable.
        """
        check_wave(wave)
        with self._watching.admit():
            last: WaveProgress | None = None
            sent = History(self._reader, new_only=new_rewards_only) if history else None
            while last is None or last.phase not in OVER:
                standing, training = await self._find(wave)
                words = standing.words(training)
                rewards, new = await sent.read(standing.base, training, words) if sent else ({}, False)
                now = wave_progress(standing.base, training, words)
                if new or now != last:
                    names = training.policies[:MOST_CURVES] if curves and last is None else ()
                    yield with_history(now, rewards, await self._reader.curves(standing.base, names))
                    last = now
                else:
                    await asyncio.sleep(LOOK_S)

    async def _find(self, wave: str) -> tuple[Standing, WaveTraining]:
        unknown: MapUnavailable | None = None
        for base in sorted(self._mirror.views_in_scope()):
            standing = await self.standing(base)
            if not standing.known:
                unknown = incomplete(base)
            if training := standing.training.get(wave):
                return standing, training
        if unknown:
            raise unknown
        message = "is not a training wave over any base model that is served; see kubectl get adapterwaves"
        raise NotFound(f"wave {wave}", message)

    async def _read(self, base: str) -> _Reading:
        views = self._mirror.views  # unscoped: this reading serves callers with any key
        self._readings = {name: each for name, each in self._readings.items() if name in views}
        reading = self._readings.setdefault(base, _Reading(lock=asyncio.Lock()))
        async with reading.lock:
            now = asyncio.get_running_loop().time()
            if now - reading.read_at >= LOOK_S:
                training = await self._training(base, reading, now)
                reading.known = training is not None
                if training is not None:
                    engines = views[base].engines if training and base in views else {}
                    reports = await self._reader.progress(base, sorted(engines))
                    progresses = {name: of if engines[name].alive else untrained(of) for name, of in reports.items()}
                    reading.progresses = with_last_reports(reading.progresses, progresses, training)
                reading.read_at = now
        return reading

    async def _training(self, base: str, reading: _Reading, now: float) -> Mapping[str, WaveTraining] | None:
        """Return what the map knows of the base's waves; read it only if it may have changed.

        A map that was lost and written again can come to the same edition, so it is also read every REREAD_S.
        """
        edition = await self._reader.known_edition(base)
        same = edition is not None and edition == reading.edition
        if same and reading.known and now - reading.training_at < REREAD_S:
            return reading.training
        found = await self._reader.known(base)
        if found is not None:
            reading.training, reading.edition, reading.training_at = found, edition, now
        return found
