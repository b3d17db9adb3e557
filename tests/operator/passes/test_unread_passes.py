"""After a rollback, over a real API server and a real Redis: a newer version's data is read as far as possible.

The newer version's CRDs stay, and so does what its operator wrote to the map.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.map_reader import MapReader
from mint_contracts.training_records import Stage
from tests.apiserver import ApiServer, KubectlError
from tests.operator.stage import Stage as Theatre
from tests.operator.stage import adapter_wave, base_model, until
from tests.operator.training_stage import TRAINING, leases, tell, training_wave

CRD = "adapterwaves.mint.dev"
FIELD = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/train/properties/tape"


@pytest.fixture
def newer(api_server: ApiServer) -> Iterator[None]:
    """Add to the CRD a field `tape` for training waves, which this version does not know."""
    patch = [{"op": "add", "path": FIELD, "value": {"type": "string"}}]
    api_server.kubectl("patch", "crd", CRD, "--type=json", "-p", json.dumps(patch))
    yield
    api_server.kubectl("patch", "crd", CRD, "--type=json", "-p", json.dumps([{"op": "remove", "path": FIELD}]))


async def on_tape(stage: Theatre, name: str) -> None:
    """Apply a wave that only the newer version can read, as soon as the API server accepts it."""

    async def taken() -> bool:
        try:
            stage.apply(training_wave(name, tape="long"))
        except KubectlError:
            return False
        return True

    await until("the API server to take the newer definition", taken)


async def rewritten(redis: Redis, key: str, field: str) -> Any:
    """Rewrite records as the newer operator does, with an unknown entry in `field`, and return them."""
    for name, text in (await redis.hgetall(key)).items():
        record: dict[str, Any] = json.loads(text)
        record[field]["tape"] = "long"
        await redis.hset(key, name, json.dumps(record))
    return await redis.hgetall(key)


@pytest.mark.usefixtures("newer")
async def test_a_wave_that_only_a_newer_version_reads_keeps_what_it_has_until_it_is_deleted(stage: Theatre) -> None:
    engine = stage.engine()
    await stage.reconcile(base_model(**TRAINING), adapter_wave("demo", ["demo/a"]), training_wave("w"))
    await engine.report()
    await stage.once()
    await engine.obey()
    await tell(stage.redis, stage, Stage.RUNNING, 2)
    await stage.once()
    assert sorted(await leases(stage)) == [f"{stage.namespace}/w-{index}" for index in range(2)]

    await on_tape(stage, "w")
    records, trains = keys.training(stage.base), keys.trains(stage.base, "smol-0")
    record = await rewritten(stage.redis, records, "train")
    leased = await rewritten(stage.redis, trains, "settings")
    waves = await MapReader(stage.redis).waves(stage.base)
    stage.operator(2)
    for _ in range(2):
        await stage.once()
    assert await stage.redis.hgetall(records) == record
    assert await stage.redis.hgetall(trains) == leased
    assert await MapReader(stage.redis).waves(stage.base) == waves
    ready = await stage.condition("AdapterWave", "w")
    assert (ready["status"], ready["reason"]) == ("Unknown", "InvalidRequest")
    assert "unknown field `tape`" in ready["message"]
    assert (await stage.status("AdapterWave", "w"))["phase"] == "Training"
    assert (await stage.status("AdapterWave", "demo"))["phase"] == "Ready", "and hinders no other"
    assert sum((await stage.once()).values()) == 0

    stage.delete("adapterwave", "w")
    await stage.once()
    assert await stage.redis.hgetall(records) == {}
    assert await stage.redis.hgetall(trains) == {}


@pytest.mark.usefixtures("newer")
async def test_a_wave_that_is_written_so_that_this_version_reads_it_goes_on_under_its_leases(stage: Theatre) -> None:
    engine = stage.engine()
    await stage.reconcile(base_model(**TRAINING), training_wave("w"))
    await engine.report()
    await stage.once()
    before = await leases(stage)
    await rewritten(stage.redis, keys.training(stage.base), "train")
    await rewritten(stage.redis, keys.trains(stage.base, "smol-0"), "settings")
    assert await leases(stage) == {}, "an engine of this version passes over them"
    stage.operator(2)
    await stage.once()
    assert await leases(stage) == before
