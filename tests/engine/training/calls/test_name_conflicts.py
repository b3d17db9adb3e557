"""A client's policy cannot have a name that is already taken; the error says who has it."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from mint_contracts import training_pb2 as pb
from mint_contracts.catalog_writer import CatalogWriter
from mint_contracts.entries import Entry
from mint_contracts.errors import InvalidRequest
from mint_contracts.functions import connect
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import BaseRecord, MapChange, Place, Placement, Tier
from mint_contracts.source import Source, child
from mint_contracts.train_writer import TrainWriter
from mint_contracts.training_records import TrainChange, WaveTraining, published_in
from mint_engine.policies.calls.name_conflicts import NameConflicts
from mint_engine.sources.blocking import run_blocking
from tests.contracts.catalogs import make_complete
from tests.engine.running import save_base
from tests.engine.training.calling import called, refused
from tests.engine.training.training_engine import train
from tests.redis_process import free_port

LIMIT_S = 60.0  # only a failing test waits this long
BASE, POLICY = "demo/tiny", "acme/one"
TRAINING, CATALOG = Source("file:///training"), Source("s3://catalog/smol")
OWN = child(published_in(TRAINING, POLICY), "1-1")


def name_conflicts(redis: Redis, store: Source | None = None) -> NameConflicts:
    return NameConflicts(redis, BASE, TRAINING, store)


async def catalogued(redis: Redis, *entries: Entry) -> None:
    await MapWriter(redis, epoch=1).apply(BASE, MapChange(base=BaseRecord(BASE, catalog=CATALOG)))
    writer = CatalogWriter(redis)
    await make_complete(writer, BASE)
    for sequence, entry in enumerate(entries, 1):
        await writer.apply(BASE, [(sequence, entry)], f"part-{sequence}")


async def place(redis: Redis, source: Source) -> None:
    placement = Placement(POLICY, source, ("demo/wave",), (Place("e-0", Tier.DEVICE, "spread"),))
    await MapWriter(redis, epoch=1).apply(BASE, MapChange(set_placements=(placement,)))


async def refusal(of: NameConflicts) -> str:
    with pytest.raises(InvalidRequest) as error:
        await of.refuse(POLICY)
    return str(error.value)


async def test_a_name_that_nobody_has_is_free(redis_client: Redis) -> None:
    await catalogued(redis_client, Entry("acme/two", "s3://adapters/two"))
    await name_conflicts(redis_client).refuse(POLICY)


async def test_the_catalogs(redis_client: Redis) -> None:
    await catalogued(redis_client, Entry(POLICY, "s3://adapters/one"))
    told = await refusal(name_conflicts(redis_client))
    assert told.startswith(f"policy {POLICY!r}: cannot be published: adapter {POLICY!r}, which has its name, is in ")
    assert f"the catalog of {BASE}" in told


async def test_a_retired_one(redis_client: Redis) -> None:
    await catalogued(redis_client, Entry(POLICY, "s3://adapters/one"), Entry(POLICY, retired=True))
    assert "was retired from the catalog" in await refusal(name_conflicts(redis_client))


async def test_a_waves_adapter_or_policy_conflicts_and_the_wave_is_not_named(redis_client: Redis) -> None:
    """The error must not name the wave: an API key may allow the adapter's name but not the wave's namespace."""
    await place(redis_client, Source("s3://adapters/one"))
    told = await refusal(name_conflicts(redis_client))
    assert f"adapter {POLICY!r} of a wave has its name" in told
    assert "demo" not in told
    await place(redis_client, OWN)
    wave = WaveTraining("demo/lessons", 1, train(), TRAINING, policies=(POLICY,))
    await TrainWriter(redis_client, 1).apply(BASE, TrainChange(set_training=(wave,)))
    told = await refusal(name_conflicts(redis_client))
    assert f"policy {POLICY!r} of a wave has its name" in told
    assert "demo" not in told


async def test_an_adapter_in_the_bases_store_conflicts(redis_client: Redis, tmp_path: Path) -> None:
    store = Source(f"file://{tmp_path}")
    await name_conflicts(redis_client, store).refuse(POLICY)
    (tmp_path / POLICY).mkdir(parents=True)
    (tmp_path / POLICY / "adapter_model.safetensors").touch()
    assert f"adapter {POLICY!r} in the store of {BASE}" in await refusal(name_conflicts(redis_client, store))


async def test_a_policys_own_revision_in_a_wave_or_the_catalog_is_no_conflict(redis_client: Redis) -> None:
    await catalogued(redis_client, Entry(POLICY, OWN.uri))
    await place(redis_client, OWN)
    await name_conflicts(redis_client).refuse(POLICY)


async def test_policies_are_published_while_the_map_does_not_answer() -> None:
    away = connect(f"redis://127.0.0.1:{free_port()}/0")
    await name_conflicts(away).refuse(POLICY)
    await away.aclose()


async def test_an_adapter_store_that_does_not_answer_holds_up_no_policy(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a mount whose server is gone, a read may never return: it keeps its thread, and no more than a few do."""
    monkeypatch.setattr("mint_engine.sources.looking.LOOK_S", 0.01)
    answers, looks = threading.Event(), threading.Semaphore(0)

    class Silent:
        def files(self, *_: str) -> dict[str, int | None]:
            looks.release()
            answers.wait(LIMIT_S)
            return {"adapter_config.json": 2}

    monkeypatch.setattr("mint_engine.sources.looking.folder_of", lambda _: Silent())
    of = name_conflicts(redis_client, Source("file:///adapters"))
    try:
        for _ in range(40):
            await of.refuse(POLICY)
        assert await asyncio.to_thread(looks.acquire, timeout=LIMIT_S)
        assert await run_blocking(lambda: "runs") == "runs"
    finally:
        answers.set()


async def test_a_policy_is_not_even_created_under_a_name_that_it_could_not_publish(
    redis_client: Redis, tmp_path: Path
) -> None:
    """What it had learnt by then could not be given another name."""
    adapter = tmp_path / "adapters" / POLICY
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    create = pb.CreatePolicyRequest(policy=POLICY, rank=4)
    (tmp_path / "base").mkdir()
    async with called(save_base(tmp_path / "base"), tmp_path) as (scene, stub):
        here, names = scene.server.register.here, name_conflicts(redis_client, Source(f"file://{tmp_path}/adapters"))
        scene.server.register.context = replace(here, refuse_taken=names.refuse)
        error = await refused(stub.CreatePolicy(create))
        assert error.reason == "InvalidRequest"
        assert f"adapter {POLICY!r} in the store of {BASE} has its name; create it under another name" in str(error)
        assert (await refused(stub.GetPolicy(pb.GetPolicyRequest(policy=POLICY)))).reason == "PolicyNotFound"
        (adapter / "adapter_config.json").unlink()
        await stub.CreatePolicy(create)
