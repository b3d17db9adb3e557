"""Our side of a resumption: a real engine's process is killed while it trains, and another engine continues.

python -m tests.bench.our_resume '{"base": ..., "device": "cpu", "tokens": 64}'
"""

import asyncio
import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from redis.asyncio import Redis

from mint_contracts.functions import connect
from mint_contracts.map_reader import MapReader
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import MapChange
from mint_contracts.source import Source
from mint_contracts.train_reader import TrainReader
from mint_contracts.train_writer import TrainWriter
from mint_contracts.training import Dataset, Length, Policies, Policy, Reward, Train, TrainSampling
from mint_contracts.training_records import TrainAssignment, TrainChange, WaveTraining
from tests.bench.places import scratch
from tests.bench.prompts import GROUP, PROMPTS, RANK, TARGET, texts
from tests.bench.protocol import Answer, serve
from tests.engine.pods import BASE, Pod, pod
from tests.engine_views import engine_views
from tests.redis_process import RedisProcess
from tests.waiting import until

POLICY, WAVE = "bench/resumed", "bench/wave"
STEPS = 5  # watched before the kill; the first is a warm-up and is not counted
PATIENCE_S = 300.0


class Resumption:
    """Each `resume` is a complete run: an engine, a wave of one policy, a kill, another engine."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup

    def start(self) -> Answer:
        """Do nothing: no state is kept between two runs."""
        return {}

    def resume(self) -> Answer:
        """Return the seconds of an undisturbed step, from the kill to another ready engine, and to a new step."""
        with scratch("resume") as folder, tempfile.TemporaryDirectory() as data, RedisProcess(Path(data)) as redis:
            return asyncio.run(self._live(folder, redis))

    async def _live(self, folder: Path, process: RedisProcess) -> Answer:
        redis, store = connect(process.url), Source(f"file://{folder}/training")
        (folder / "training").mkdir()
        told: dict[str, Any] = {
            "dtype": "bfloat16", "device": self._setup["device"], "context_length": 256, "kv_cache_bytes": 1 << 30,
            "host_bytes": 1 << 28, "disk_bytes": 1 << 30, "training_store": store,
        }  # fmt: skip
        source = Source(f"file://{self._setup['base']}")
        with pod(folder, process, source, name="first", **told) as engine:
            await _ready(redis, engine)
            await self._grant(redis, store, engine.name, lease=1)
            seen = [await _finished(redis, engine, step) for step in range(1, STEPS + 1)]
            steps = [after - before for before, after in pairwise(seen)]
            await asyncio.sleep(median(steps) / 2)  # half of a step is lost
            finished = (await TrainReader(redis).progress(BASE, [engine.name]))[engine.name][POLICY].step
            engine.process.kill()
            killed = time.perf_counter()
        with pod(folder, process, source, name="second", **told) as engine:
            ready = await _ready(redis, engine)
            await self._grant(redis, store, engine.name, lease=2)
            resumed = await _finished(redis, engine, finished + 1)
        await redis.aclose()
        return {"step": median(steps[1:]), "pod": ready - killed, "resumed": resumed - ready}

    async def _grant(self, redis: Redis, store: Source, engine: str, lease: int) -> None:
        """Write what the operator writes, without the time it takes to notice that an engine has died."""
        told = Train(
            Policies(count=1),
            dataset=Dataset(lines=[json.dumps({"prompt": text}) for text in texts(0)]),
            reward=Reward(length=Length(target=TARGET, tolerance=TARGET)),
            steps=1000,
            group_size=GROUP,
            prompts_per_step=PROMPTS,
            sampling=TrainSampling(max_tokens=self._setup["tokens"]),
        )
        assignment = TrainAssignment(POLICY, WAVE, lease, Policy(name=POLICY, rank=RANK, alpha=16.0, seed=0))
        change = TrainChange(set_training=(WaveTraining(WAVE, 1, told, store),), set_trains={engine: (assignment,)})
        await MapWriter(redis, epoch=1).apply(BASE, MapChange())  # a map without a version counts as not written yet
        await TrainWriter(redis, epoch=1).apply(BASE, change)


async def _ready(redis: Redis, engine: Pod) -> float:
    """Wait until the engine reports that it is ready, and return the time."""

    async def look() -> bool:
        _check(engine)
        views = await engine_views(MapReader(redis), BASE)
        return any(each.engine == engine.name and each.record is not None and each.record.ready for each in views)

    await until(look, PATIENCE_S)
    return time.perf_counter()


async def _finished(redis: Redis, engine: Pod, step: int) -> float:
    """Wait until the engine reports that the policy has finished a step, and return the time."""

    async def look() -> bool:
        _check(engine)
        found = (await TrainReader(redis).progress(BASE, [engine.name]))[engine.name].get(POLICY)
        if found is not None and found.failure is not None:
            raise RuntimeError(found.failure.message)
        return found is not None and found.step >= step

    await until(look, PATIENCE_S)
    return time.perf_counter()


def _check(engine: Pod) -> None:
    if engine.process.poll() is not None:
        raise RuntimeError(f"{engine.name} has ended; its log ends with {engine.log.read_text()[-500:]}")


if __name__ == "__main__":
    side = Resumption(json.loads(sys.argv[1]))
    serve({"start": side.start, "resume": side.resume})
