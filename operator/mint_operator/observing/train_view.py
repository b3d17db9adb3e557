"""The Redis half of observation, for training: who trains what, its progress, and what was known before a loss."""

import time
from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.train_reader import TrainReader
from mint_contracts.training_records import TrainChange, TrainState, WaveTraining
from mint_contracts.training_reports import no_longer_reported
from mint_operator.observing.map_view import FULL_READ_S
from mint_operator.planning.snapshot import BaseMap, TrainKnown

LOOK_S = 1.0  # between reads of progress: heartbeats come more often than steps end


class _Memory(msgspec.Struct):
    known: TrainKnown = TrainKnown()
    version: int | None = None
    looked_at: float = float("-inf")
    records: Mapping[str, WaveTraining] = {}
    edition: int | None = None  # of the records as last read; None: unknown
    records_at: float = 0.0  # when they were last read


class TrainView:
    """The training part of the map as last read.

    Waves' records, which may hold 1 MiB of examples each, are read again only if their edition is another, after this
    operator has written some, or after FULL_READ_S.
    """

    def __init__(self, reader: TrainReader, look_s: float = LOOK_S) -> None:
        self._reader = reader
        self._look_s = look_s
        self._memory: dict[str, _Memory] = {}

    @property
    def known(self) -> dict[str, TrainKnown]:
        """What was last read, by base."""
        return {base: memory.known for base, memory in self._memory.items()}

    def invalidate(self, base: str, change: TrainChange) -> None:
        """Have the next look read this base again: this change is being written to it."""
        memory = self._memory.get(base)
        if memory is not None:
            memory.looked_at = float("-inf")
            if change.set_training or change.del_training:
                memory.edition = None

    async def look(self, maps: Mapping[str, BaseMap], engines: Mapping[str, Sequence[str]]) -> dict[str, TrainKnown]:
        """Return the training state of every base in `maps`. Raises MapUnavailable; what was known stays."""
        for base, known in maps.items():
            memory, now = self._memory.setdefault(base, _Memory()), time.monotonic()
            if memory.version == known.state.version and now - memory.looked_at < self._look_s:
                continue
            names = sorted({*engines.get(base, ()), *(view.engine for view in known.engines)})
            names = sorted({*names, *memory.known.state.trains})
            written = await self._read(base, names, memory, lost=known.state.version is None)
            memory.known = TrainKnown(written=written, state=_remembering(memory.known.state, written, known))
            memory.version, memory.looked_at = known.state.version, now
        for base in self._memory.keys() - maps.keys():
            del self._memory[base]
        return self.known

    async def _read(self, base: str, engines: Sequence[str], memory: _Memory, *, lost: bool) -> TrainState:
        """Read a base's training: in one read if it trains nothing, unless its map is lost, when engines may know."""
        training = await self._records(base, memory, lost=lost)
        if not training and not lost:
            return TrainState()
        trains = await self._reader.trains(base, engines, partly=True)
        progress = await self._reader.progress(base, engines, partly=True)
        return TrainState(training=training, trains=trains, progress=progress)

    async def _records(self, base: str, memory: _Memory, *, lost: bool) -> Mapping[str, WaveTraining]:
        now, edition = time.monotonic(), await self._reader.edition(base) if memory.records else None
        same = edition is not None and edition == memory.edition
        if lost or not same or now - memory.records_at > FULL_READ_S:
            memory.records = await self._reader.training(base, partly=True)
            memory.edition, memory.records_at = edition, now
        return memory.records


def _remembering(before: TrainState, now: TrainState, known: BaseMap) -> TrainState:
    """Return what the map says, plus leases from before a loss and the last reports on policies missing now."""
    training, trains = now.training, now.trains
    if known.state.version is None:
        training = {**before.training, **training}
        trains = {engine: {**before.trains.get(engine, {}), **of} for engine, of in trains.items()}
    progress = dict(now.progress)
    for engine, of in no_longer_reported(before.progress, now.progress, training).items():
        progress[engine] = {**progress.get(engine, {}), **of}
    return TrainState(training=training, trains=trains, progress=progress)
