"""Training waves on a stage: their manifests, their leases, and what the played engines report of them."""

from typing import Any

import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.train_reader import TrainReader
from mint_contracts.training_records import Progress, Stage, TrainAssignment
from tests.operator.stage import Stage as Theatre
from tests.operator.stage import adapter_wave

TRAINING: dict[str, Any] = {"training": {"store": {"uri": "pvc://training/runs"}}}


def training_wave(name: str, count: int = 2, **train: Any) -> dict[str, Any]:
    required = {"policies": {"count": count}, "dataset": {"lines": ['{"prompt": "x"}']}, "reward": {"exactMatch": {}}}
    spec = {"train": required | {"steps": 4} | train}
    wave = adapter_wave(name, [])
    wave["spec"] |= spec
    del wave["spec"]["adapters"]
    return wave


async def leases(stage: Theatre, *engines: str) -> dict[str, TrainAssignment]:
    found = await TrainReader(stage.redis).trains(stage.base, engines or ["smol-0"])
    return {name: each for of in found.values() for name, each in of.items()}


async def tell(redis: Redis, stage: Theatre, stands: Stage, step: int, **fields: Any) -> None:
    """Write an engine's progress on everything that it trains to the map."""
    for name, lease in (await leases(stage)).items():
        progress = Progress(name, lease.wave, lease.lease, stands, run=lease.run, step=step, steps=4, **fields)
        await redis.hset(keys.progress(stage.base, "smol-0"), name, msgspec.json.encode(progress).decode())
