"""A training wave: the operator's record of it, its engine's reports, and the updates that a gateway streams."""

import asyncio

import msgspec

from mint_contracts import keys
from mint_contracts.source import Source
from mint_contracts.step_figures import Curve
from mint_contracts.train_writer import TrainWriter
from mint_contracts.training import Dataset, Policies, Train
from mint_contracts.training_pb2 import WaveProgress
from mint_contracts.training_records import Progress, Stage, TrainChange, WaveTraining
from tests.gateway.scene import BASE, Scene

NAMES = ("demo/w-0", "demo/w-1")


def wave(phase: str = "Training", run: str = "uid", message: str = "") -> WaveTraining:
    train = Train(policies=Policies(), dataset=Dataset(lines=["{}"]), steps=4)
    return WaveTraining("demo/w", 1, train, Source("s3://runs"), run, NAMES, phase, message)


def reported(
    policy: str, step: int, stage: Stage = Stage.RUNNING, lease: int = 7, run: str = "uid", **fields: object
) -> Progress:
    return Progress(policy, "demo/w", lease, stage, run=run, step=step, steps=4, **fields)  # type: ignore[arg-type]


class Training:
    """One engine that trains the wave's two policies, and the operator's record of the wave."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._writer = TrainWriter(scene.redis, epoch=1)

    async def declare(self, training: WaveTraining) -> None:
        await self._writer.apply(BASE, TrainChange(set_training=(training,)))

    async def report(
        self,
        *progress: Progress,
        rewards: dict[str, list[float]] | None = None,
        curves: dict[str, Curve] | None = None,
    ) -> None:
        together = self._scene.redis.pipeline(transaction=True)
        for each in progress:
            together.hset(keys.progress(BASE, "e-0"), each.policy, msgspec.json.encode(each).decode())
        for name, values in (rewards or {}).items():
            together.delete(keys.rewards(BASE, name))
            together.rpush(keys.rewards(BASE, name), *values)
        for name, curve in (curves or {}).items():
            together.rpush(keys.curve(BASE, name), msgspec.json.encode(curve).decode())
        await together.execute()

    async def forget(self) -> None:
        await self._writer.apply(BASE, TrainChange(del_training=("demo/w",)))


async def reached(updates: object, holds: object) -> WaveProgress:
    async with asyncio.timeout(60):
        async for progress in updates:  # type: ignore[attr-defined]
            if holds(progress):  # type: ignore[operator]
                return WaveProgress.FromString(progress.SerializeToString())
    raise AssertionError("the stream ended before")
