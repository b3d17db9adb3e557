"""Training waves over a real API server and a real Redis, with engines that the test plays."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mint_contracts import keys
from mint_contracts.map_reader import MapReader
from mint_contracts.records import Failure
from mint_contracts.train_reader import TrainReader
from mint_contracts.train_reporter import MissingRewards, TrainReporter
from mint_contracts.training_records import Order, Progress, Stage
from mint_operator.kube import KubeError, connect
from mint_operator.observing import decode, train_inputs
from mint_operator.observing.dirt import RESYNC, Part
from mint_operator.observing.feed import News
from mint_operator.observing.train_inputs import InputsView
from mint_operator.planning.snapshot import ObservedWave
from tests.operator.stage import PlayedEngine, base_model, until
from tests.operator.stage import Stage as Theatre
from tests.operator.training_stage import TRAINING, leases, tell, training_wave
from tests.operator.training_worlds import published
from tests.redis_process import RedisProcess


async def ready(stage: Theatre) -> None:
    """Create a base whose engine answers."""
    await stage.reconcile(base_model(**TRAINING))
    await stage.engine().report()
    await stage.once()


async def seen(stage: Theatre, wave: str) -> None:
    """Play the watch: report a wave."""
    raw = await stage.kube.get("AdapterWave", stage.namespace, wave)
    assert raw is not None
    stage.feed.put(decode.identity(raw)[0], News("AdapterWave", raw))


def lessons(prompt: str) -> dict[str, Any]:
    """Return a ConfigMap with one example."""
    data = {"data.jsonl": json.dumps({"prompt": prompt}) + "\n"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "lessons"}, "data": data}


async def examples(stage: Theatre, wave: str) -> list[str]:
    """Return the dataset lines that a wave is trained on."""
    train = (await TrainReader(stage.redis).training(stage.base))[f"{stage.namespace}/{wave}"].train
    assert train.dataset is not None
    return train.dataset.lines


async def training(stage: Theatre, engine: PlayedEngine, **train: Any) -> None:
    """Create a base whose engine answers, and a wave with its leases."""
    await stage.reconcile(base_model(**TRAINING), training_wave("w", **train))
    await engine.report()
    await stage.once()


async def test_a_wave_trains_and_is_complete_and_served(stage: Theatre) -> None:
    engine = stage.engine()
    await training(stage, engine)
    names = [f"{stage.namespace}/w-{index}" for index in range(2)]
    found = await leases(stage)
    assert sorted(found) == names
    assert {(lease.order, lease.incarnation) for lease in found.values()} == {(Order.RUN, 1)}
    await tell(stage.redis, stage, Stage.RUNNING, 2, reward_recent=0.5, tokens=64, step_s=1.5)
    await stage.once()
    status = await stage.status("AdapterWave", "w")
    assert (status["phase"], status["training"]["progress"], status["training"]["eta"]) == ("Training", "2/4", "3s")
    assert status["training"]["policies"]["running"] == 2
    await tell(stage.redis, stage, Stage.COMPLETE, 4, published=published(4))
    await stage.once()
    stage.server.kubectl("wait", "-n", stage.namespace, "--for=condition=Complete", "adapterwave/w", "--timeout=30s")
    assert sorted(await engine.assigned()) == names
    await engine.obey()
    await stage.once()
    assert (await stage.condition("AdapterWave", "w"))["status"] == "True"


async def test_a_pass_that_finds_everything_right_writes_nothing(stage: Theatre) -> None:
    engine = stage.engine()
    await training(stage, engine)
    await tell(stage.redis, stage, Stage.RUNNING, 1)
    await stage.once()
    assert sum((await stage.once()).values()) == 0


async def test_progress_alone_makes_a_pass_worthwhile(stage: Theatre) -> None:
    engine = stage.engine()
    await training(stage, engine)
    await tell(stage.redis, stage, Stage.RUNNING, 1)
    assert (await stage.once(frozenset({Part.MAP})))["statuses"] > 0


async def test_examples_come_from_a_config_map_once_it_is_there(stage: Theatre) -> None:
    engine = stage.engine()
    await training(stage, engine, dataset={"configMap": {"name": "lessons"}})
    complete = await stage.condition("AdapterWave", "w", "Complete")
    assert complete["reason"] == "SourceNotFound"
    assert "ConfigMap lessons" in complete["message"]
    await stage.reconcile(lessons("1+1="))
    assert await examples(stage, "w") == ['{"prompt": "1+1="}']
    assert len(await leases(stage)) == 2


async def test_a_config_map_that_could_not_be_read_is_read_at_the_next_look(stage: Theatre, tmp_path: Path) -> None:
    stage.apply(lessons("1+1="), training_wave("w", dataset={"configMap": {"name": "lessons"}}))
    raw = await stage.kube.get("AdapterWave", stage.namespace, "w")
    assert raw is not None
    kube = connect(str(stage.account(tmp_path)))
    view, waves = InputsView(kube, stage.dirt.wake), (decode.adapter_wave(raw),)
    await view.refresh(frozenset(), waves)
    unread = view.inputs.config_maps[stage.namespace]["lessons"]
    assert isinstance(unread, Failure)
    assert (unread.reason, unread.terminal) == ("SourceUnavailable", False)
    assert "forbidden" in unread.message
    stage.let_in(stage.namespace)

    async def read() -> bool:
        await view.refresh(frozenset(), waves)
        return bool(view.inputs.config_maps[stage.namespace]["lessons"] == lessons("1+1=")["data"])

    await until("it to be read", read)
    kube.close()


async def test_a_config_map_that_cannot_be_read_is_asked_for_ever_later_and_at_once_for_a_new_wave(
    stage: Theatre, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def refused(_kind: str, _namespace: str, name: str) -> bytes:
        asked.append(name)
        raise KubeError("GET", 403, "forbidden")

    monkeypatch.setattr(stage.kube, "get", refused)
    waves = tuple(named_config_map(name) for name in ("one", "two"))
    view, first = InputsView(stage.kube, stage.dirt.wake), waves[:1]
    monkeypatch.setattr(train_inputs, "FIRST_RETRY_S", 0.0)
    for _ in range(2):
        await view.refresh(frozenset(), first)
    monkeypatch.setattr(train_inputs, "FIRST_RETRY_S", 1e6)
    monkeypatch.setattr(train_inputs, "LONGEST_RETRY_S", 1e6)
    await view.refresh(frozenset(), first)
    assert asked == ["lessons"] * 3
    for parts in (frozenset[Part](), frozenset({Part.WAVES}), RESYNC):
        await view.refresh(parts, first)
    assert asked == ["lessons"] * 3, "nor whenever a list is due"
    await view.refresh(frozenset(), waves)
    assert asked == ["lessons"] * 4


async def test_a_new_wave_is_not_given_a_config_map_as_it_was_for_an_earlier_one(
    stage: Theatre, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been edited for the new wave, which would keep what it begins with."""

    async def answered(_kind: str, _namespace: str, _name: str) -> bytes:
        return json.dumps(lessons("1+1=")).encode()

    async def refused(_kind: str, _namespace: str, _name: str) -> bytes:
        raise KubeError("GET", 503, "etcd is away")

    waves = tuple(named_config_map(name) for name in ("one", "two"))
    view, known = InputsView(stage.kube, stage.dirt.wake), lessons("1+1=")["data"]
    monkeypatch.setattr(stage.kube, "get", answered)
    await view.refresh(frozenset(), waves[:1])
    monkeypatch.setattr(stage.kube, "get", refused)
    await view.refresh(RESYNC, waves[:1])
    assert view.inputs.config_maps["team"]["lessons"] == known
    monkeypatch.setattr(train_inputs, "FIRST_RETRY_S", 0.0)
    await view.refresh(frozenset(), waves)
    assert isinstance(view.inputs.config_maps["team"]["lessons"], Failure)
    monkeypatch.setattr(stage.kube, "get", answered)
    await view.refresh(frozenset(), waves)
    assert view.inputs.config_maps["team"]["lessons"] == known


def named_config_map(name: str) -> ObservedWave:
    """Return a wave that trains on the ConfigMap `lessons`."""
    wave = training_wave(name, dataset={"configMap": {"name": "lessons"}})
    wave["metadata"] |= {"namespace": "team", "uid": f"uid-{name}"}
    return decode.adapter_wave(json.dumps(wave).encode())


async def test_a_new_wave_trains_at_once_on_the_config_map_as_it_is_by_then(stage: Theatre) -> None:
    await ready(stage)
    for name, prompt in (("first", "1+1="), ("second", "2+2=")):  # edited between the two
        stage.apply(lessons(prompt), training_wave(name, dataset={"configMap": {"name": "lessons"}}))
        await seen(stage, name)
        await stage.once(frozenset())
        assert (await stage.status("AdapterWave", name))["phase"] != "Failed"
        assert await examples(stage, name) == [json.dumps({"prompt": prompt})]
    assert len(await leases(stage)) == 4
    assert await examples(stage, "first") == [json.dumps({"prompt": "1+1="})], "what has begun keeps its own"


async def test_a_new_wave_trains_as_soon_as_its_manifest_is_read(stage: Theatre, shelf: tuple[Path, str]) -> None:
    folder, url = shelf
    (folder / "policies.jsonl").write_text('{"name": "acme/a"}\n{"name": "acme/b"}\n')
    await ready(stage)
    stage.apply(training_wave("w", policies={"manifest": f"{url}/policies.jsonl"}))
    await seen(stage, "w")
    await stage.once(frozenset())

    async def trains() -> bool:
        assert (await stage.status("AdapterWave", "w"))["phase"] != "Failed"
        await stage.once(frozenset({Part.MAP}))
        return sorted(await leases(stage)) == ["acme/a", "acme/b"]

    await until("both policies to be trained", trains)


async def test_a_manifest_that_was_rewritten_is_the_next_waves_alone(stage: Theatre, shelf: tuple[Path, str]) -> None:
    folder, url = shelf
    await ready(stage)

    async def trains() -> bool:
        await stage.once(frozenset({Part.MAP}))
        return sorted(await leases(stage)) == there

    there: list[str] = []
    for wave, policy in (("first", "acme/a"), ("second", "acme/b")):
        (folder / "policies.jsonl").write_text(f'{{"name": "{policy}"}}\n')
        stage.apply(training_wave(wave, policies={"manifest": f"{url}/policies.jsonl"}))
        await seen(stage, wave)
        there.append(policy)
        await until(f"{there} to be trained", trains)
    before = await leases(stage)
    stage.operator(2)
    for _ in range(3):
        await stage.once()
        assert await leases(stage) == before


async def test_a_new_operator_grants_nothing_anew(stage: Theatre) -> None:
    engine = stage.engine()
    await training(stage, engine)
    before = await leases(stage)
    stage.operator(2)
    await stage.once()
    assert await leases(stage) == before


async def test_a_complete_wave_outlives_its_engine_s_start_and_then_the_operator_s(stage: Theatre) -> None:
    await training(stage, stage.engine())
    await tell(stage.redis, stage, Stage.COMPLETE, 4, published=published(4), reward_recent=0.5)
    await stage.once()
    before = (await stage.status("AdapterWave", "w"))["training"]
    engine = stage.engine(incarnation=2)
    await engine.report()
    assert await TrainReporter(stage.redis, stage.base, "smol-0").report(2, (), (), {}, full=True) == MissingRewards()
    for epoch in (None, 2, 3):
        if epoch is not None:
            stage.operator(epoch)
        await stage.once()
        await engine.obey()
        await stage.once()
        status = await stage.status("AdapterWave", "w")
        assert (status["phase"], status["training"]) == ("Complete", before)
        assert await leases(stage) == {}
        assert sorted(await engine.assigned()) == [f"{stage.namespace}/w-{index}" for index in range(2)]
    assert (await stage.condition("AdapterWave", "w"))["status"] == "True"
    assert sum((await stage.once()).values()) == 0, "what is on record is written once"


async def test_leases_outlive_a_redis_that_lost_everything(mortal_stage: tuple[Theatre, RedisProcess]) -> None:
    stage, _ = mortal_stage
    engine = stage.engine()
    await training(stage, engine)
    await tell(stage.redis, stage, Stage.RUNNING, 2)
    await stage.once()
    before = await leases(stage)
    await stage.redis.flushall()
    stage.operator(2)  # it remembers nothing, but engines have reported again
    for name, lease in before.items():
        progress = Progress(name, lease.wave, lease.lease, Stage.RUNNING, run=lease.run, step=2, steps=4)
        await stage.redis.hset(keys.progress(stage.base, "smol-0"), name, msgspec.json.encode(progress).decode())
    await engine.report()
    await stage.once()
    assert await leases(stage) == before


async def test_engines_that_restart_without_training_get_new_leases_when_it_is_set_again(stage: Theatre) -> None:
    engine = stage.engine()
    await training(stage, engine)
    await tell(stage.redis, stage, Stage.RUNNING, 2, incarnation=1)
    await stage.once()
    before = await leases(stage)
    await stage.reconcile(base_model())
    assert await leases(stage) == {}
    await stage.engine(incarnation=2).report()
    await stage.once()
    await stage.reconcile(base_model(**TRAINING))
    now = await leases(stage)
    assert now.keys() == before.keys()
    assert all(now[name].lease > before[name].lease for name in now), "steps are repeated under names of their own"


async def test_a_wave_that_goes_leaves_nothing_behind(stage: Theatre) -> None:
    engine = stage.engine()
    await training(stage, engine)
    await stage.redis.rpush(keys.rewards(stage.base, f"{stage.namespace}/w-0"), 0.5)
    stage.delete("adapterwave", "w")
    await stage.once()
    assert await leases(stage) == {}
    assert await TrainReader(stage.redis).training(stage.base) == {}
    assert not await stage.redis.exists(keys.rewards(stage.base, f"{stage.namespace}/w-0"))


@pytest.mark.parametrize("change", [{"paused": True}, {"cancelled": True}])
async def test_a_person_stops_it(stage: Theatre, change: dict[str, bool]) -> None:
    engine = stage.engine()
    await training(stage, engine)
    patch = json.dumps({"spec": {"train": change}})
    stage.server.kubectl("patch", "-n", stage.namespace, "aw/w", "--type=merge", "-p", patch)
    await stage.once()
    orders = {lease.order for lease in (await leases(stage)).values()}
    assert orders == {Order.PAUSE if "paused" in change else Order.CANCEL}


async def test_raised_steps_reach_the_engine_that_trains_at_once(stage: Theatre) -> None:
    engine = stage.engine()
    await training(stage, engine)
    await tell(stage.redis, stage, Stage.RUNNING, 2)
    await stage.once()
    async with MapReader(stage.redis).calls(stage.base, "smol-0") as wait:
        before = (await MapReader(stage.redis).part(stage.base, "smol-0")).edition
        await stage.reconcile(training_wave("w", steps=8))
        await until("the engine to be called", lambda: wait(1.0))
        assert (await MapReader(stage.redis).part(stage.base, "smol-0")).edition > before
    read = await TrainReader(stage.redis).training(stage.base)
    assert read[f"{stage.namespace}/w"].train.steps == 8
