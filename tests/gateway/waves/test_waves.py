"""Watching training waves through a gateway, over a real Redis with records as operator and engines write them."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from mint_contracts import errors, keys
from mint_contracts.source import Source
from mint_contracts.step_figures import StepFigures
from mint_contracts.train_reader import TrainReader
from mint_contracts.training import FailurePolicy
from mint_contracts.training_pb2 import PolicyProgress, WaveProgress
from mint_contracts.training_pb2 import StepFigures as FiguresMessage
from mint_contracts.training_records import Published, Stage, WaveTraining
from mint_contracts.training_reports import as_recorded, eta_s
from mint_gateway.cli.wave_plot import plot
from mint_gateway.server import Limits
from mint_gateway.waves import watch
from mint_gateway.waves.progress import newest_reports, with_last_reports
from mint_gateway.waves.watch import RETRY_AFTER_S
from tests.gateway.scene import BASE, Scene
from tests.gateway.training_waves import NAMES, Training, reached, reported, wave
from tests.redis_process import RedisProcess
from tests.waiting import until


async def test_progress_comes_now_and_as_it_changes_until_the_end(scene: Scene, training: Training) -> None:
    await training.declare(wave())
    first, second = NAMES
    first_report = reported(first, 1, reward_recent=0.25, evaluation=0.5, tokens=10, step_s=2.0)
    await training.report(first_report, rewards={first: [0.25]})
    updates = scene.client.watch("demo/w", history=True)
    seen = await anext(updates)
    assert (seen.wave, seen.base_model, seen.phase, seen.step, seen.steps) == ("demo/w", BASE, "Training", 0, 4)
    assert [(each.policy, each.stage, each.step, each.engine) for each in seen.policies] == [
        (first, "Running", 1, "e-0"),
        (second, "Waiting", 0, ""),
    ]
    assert list(seen.policies[0].rewards) == [0.25]
    assert seen.reward_recent == 0.25
    assert seen.eta_s == 14, "6 s for the one, then 8 s for the other, as in the wave's status"
    assert (seen.evaluation, seen.policies[0].evaluation, seen.policies[0].eta_s) == (0.5, 0.5, 6)
    assert not seen.policies[1].HasField("eta_s")
    await training.report(
        reported(first, 2, reward_recent=0.5), reported(second, 1, reward_recent=1.0), rewards={first: [0.25, 0.75]}
    )
    seen = await reached(updates, lambda progress: progress.step == 1)
    assert seen.reward_recent == 0.75
    end = Published("sha256:abc", 4, Source("s3://runs/abc"))
    await training.report(*(reported(name, 4, Stage.COMPLETE, published=end) for name in NAMES))
    await training.declare(wave("Complete"))
    seen = await reached(updates, lambda progress: progress.phase == "Complete")
    assert {each.revision for each in seen.policies} == {"sha256:abc"}
    with pytest.raises(StopAsyncIteration):
        await anext(updates)


async def test_the_last_steps_figures_come_with_progress_and_curves_once_to_those_who_ask(
    scene: Scene, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = NAMES
    curve = (StepFigures(1, truncated=0.5, entropy=0.75), StepFigures(2, kl=0.25, clipped=0.0, grad_norm=2.0))
    await training.declare(wave())
    await training.report(reported(first, 2, figures=curve[-1]), reported(second, 2), curves={first: curve})
    asking, other = scene.client.watch("demo/w", curves=True), scene.client.watch("demo/w")
    seen = [await anext(asking), await anext(other)]
    told = [
        [
            FiguresMessage(step=1, truncated=0.5, entropy=0.75),
            FiguresMessage(step=2, kl=0.25, clipped=0.0, grad_norm=2.0),
        ],
        [],
    ]
    for each in seen:
        assert each.policies[0].figures == told[0][1]
        assert not each.policies[1].HasField("figures"), "its engine reports none, as an older one"
    assert [list(each.policies[0].curve) for each in seen] == told
    await training.report(reported(first, 3))
    assert not (await reached(asking, lambda progress: progress.policies[0].step == 3)).policies[0].curve
    monkeypatch.setattr(watch, "MOST_CURVES", 0)
    assert not (await anext(scene.client.watch("demo/w", curves=True))).policies[0].curve


async def test_a_wave_whose_policies_were_all_given_up_is_where_they_were(scene: Scene, training: Training) -> None:
    await training.declare(wave("Cancelled"))
    await training.report(*(reported(name, step, Stage.CANCELLED) for name, step in zip(NAMES, (2, 3), strict=True)))
    [seen] = [progress async for progress in scene.client.watch("demo/w")]
    assert seen.step == 2


@pytest.mark.parametrize(
    ("said", "step", "shown"),
    [
        ("Paused", 2, "Cancelled"),
        ("Loading", 2, "Cancelled"),
        ("Complete", 4, "Complete"),
        ("Complete", 2, "Cancelled"),  # the wave was given more steps, and cancelled before it went on
        ("Failed", 2, "Failed"),
    ],
)
async def test_what_a_cancelled_wave_had_not_trained_to_its_end_is_cancelled(
    scene: Scene, training: Training, said: str, step: int, shown: str
) -> None:
    await training.declare(wave("Cancelled"))
    await training.report(reported(NAMES[0], step, Stage(said)))
    [seen] = [progress async for progress in scene.client.watch("demo/w")]
    assert [(each.stage, each.step) for each in seen.policies] == [(shown, step), ("Cancelled", 0)]


@pytest.mark.parametrize(
    ("said", "most", "left"),
    [("Failed", 0, "Cancelled"), ("Failed", 1, "Waiting"), ("Failed", None, "Waiting"), ("Paused", 0, "Waiting")],
)
async def test_what_is_left_of_a_wave_is_cancelled_if_it_failed_by_its_policies_and_waits_if_it_was_refused(
    scene: Scene, training: Training, said: str, most: int | None, left: str
) -> None:
    declared = wave("Failed")
    train = msgspec.structs.replace(declared.train, failure_policy=FailurePolicy(max_failed=most))
    await training.declare(msgspec.structs.replace(declared, train=train))
    await training.report(reported(NAMES[0], 2, Stage(said)))
    [seen] = [progress async for progress in scene.client.watch("demo/w")]
    assert [each.stage for each in seen.policies] == [said, left]


async def test_a_wave_that_nobody_knows_is_not_found(scene: Scene, training: Training) -> None:
    with pytest.raises(errors.NotFound, match="wave demo/other: is not a training wave"):
        await anext(scene.client.watch("demo/other"))
    with pytest.raises(errors.InvalidRequest, match="must read 'namespace/name'"):
        await anext(scene.client.watch("other"))


async def test_waves_records_are_read_again_only_when_they_have_changed(
    scene: Scene, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, read = [0], TrainReader.known

    async def counted(reader: TrainReader, base: str) -> dict[str, WaveTraining] | None:
        reads[0] += 1
        return await read(reader, base)

    monkeypatch.setattr(TrainReader, "known", counted)
    monkeypatch.setattr(watch, "REREAD_S", 3600.0)
    await training.declare(wave())
    updates = scene.client.watch("demo/w")
    await anext(updates)
    for step in (1, 2, 3):
        await training.report(*(reported(name, step) for name in NAMES))
        await reached(updates, lambda progress, step=step: progress.step == step)
    assert reads == [1], "what engines report changes no record"
    await training.declare(wave("Paused"))
    await reached(updates, lambda progress: progress.phase == "Paused")
    assert reads == [2]
    await scene.redis.hdel(keys.editions(BASE), "")
    await training.report(*(reported(name, 4) for name in NAMES))
    await reached(updates, lambda progress: progress.step == 4)
    assert reads[0] > 2, "an operator of before counts no editions"


async def test_a_wave_that_is_deleted_ends_the_watch(scene: Scene, training: Training) -> None:
    await training.declare(wave())
    updates = scene.client.watch("demo/w")
    await anext(updates)
    await training.forget()
    with pytest.raises(errors.NotFound):
        await anext(updates)


async def test_a_map_that_lost_its_data_ends_no_watch(scene: Scene, training: Training) -> None:
    await training.declare(wave())
    updates = scene.client.watch("demo/w")
    await anext(updates)
    await scene.redis.flushall()
    following = asyncio.create_task(reached(updates, lambda progress: progress.phase == "Complete"))

    async def noticed() -> bool:
        try:
            await scene.client.waves()
        except errors.MapUnavailable:
            return True
        return False

    await until(noticed)
    with pytest.raises(errors.MapUnavailable):
        await anext(scene.client.watch("demo/other"))
    with pytest.raises(errors.MapUnavailable):
        await scene.client.explain_wave("demo/w")
    await training.declare(wave("Complete"))
    await scene.base()
    assert (await asyncio.wait_for(following, 60)).phase == "Complete"


async def test_what_was_heard_of_policies_is_told_on_while_the_next_start_of_their_engine_loads_its_base(
    scene: Scene, training: Training
) -> None:
    await training.declare(wave())
    await training.report(*[reported(name, 2, reward_mean=0.5, tokens=10, step_s=2.0) for name in NAMES])
    updates = scene.client.watch("demo/w")
    assert (await anext(updates)).step == 2
    await scene.redis.delete(keys.progress(BASE, "e-0"))
    now = await reached(updates, lambda update: update.policies[0].stage == "Loading")
    assert (now.step, now.tokens, now.reward_mean, now.HasField("eta_s")) == (2, 20, 0.5, False)
    assert [(each.stage, each.step) for each in now.policies] == [("Loading", 2), ("Loading", 2)]
    await training.declare(wave(run="another"))
    assert (await reached(updates, lambda update: update.step == 0)).tokens == 0


async def test_nothing_is_said_to_run_on_an_engine_that_has_no_heartbeat(scene: Scene) -> None:
    engine, training = await scene.with_engine(), Training(scene)
    await training.declare(wave())
    await training.report(reported(NAMES[0], 2, step_s=2.0), reported(NAMES[1], 4, Stage.COMPLETE))
    updates = scene.client.watch("demo/w")
    seen = await anext(updates)
    assert [each.stage for each in seen.policies] == ["Running", "Complete"]
    assert (seen.eta_s, seen.policies[0].eta_s) == (4, 4)
    await engine.silence()
    await engine.leave()
    seen = await reached(updates, lambda update: update.policies[0].stage == "Loading")
    assert [(each.stage, each.step, each.engine) for each in seen.policies] == [
        ("Loading", 2, "e-0"),
        ("Complete", 4, "e-0"),
    ]
    assert not seen.HasField("eta_s")
    assert not seen.policies[0].HasField("eta_s")


def test_a_record_that_says_more_of_a_policy_than_was_heard_of_it_counts() -> None:
    first, second = NAMES
    before = {"e-0": {first: reported(first, 2), second: reported(second, 3)}}
    rests = as_recorded(reported(first, 3, Stage.PAUSED))
    record = msgspec.structs.replace(wave(), last_words=(rests, as_recorded(reported(second, 2, Stage.PAUSED))))
    found = newest_reports(record, with_last_reports(before, {}, {"demo/w": record}))
    assert {name: (each.stage, each.step) for name, (_, each) in found.items()} == {
        first: (Stage.PAUSED, 3),
        second: (Stage.LOADING, 3),
    }


async def test_before_the_first_map_no_wave_is_said_not_to_be(fragile: Scene, own_redis: RedisProcess) -> None:
    own_redis.kill()
    await fragile.open()
    for ask in (
        lambda: anext(fragile.client.watch("demo/w")),
        fragile.client.waves,
        fragile.client.placements,
        lambda: fragile.client.explain_wave("demo/w"),
    ):
        with pytest.raises(errors.MapUnavailable, match="has not read the placement map yet"):
            await ask()


async def test_too_many_watchers_are_told_when_to_come_back(scene: Scene) -> None:
    await scene.base()
    await scene.begin(limits=Limits(watches=1, farewell_s=0.0))
    await Training(scene).declare(wave())
    first = scene.client.watch("demo/w")
    await anext(first)
    with pytest.raises(errors.Overloaded) as refused:
        await anext(scene.client.watch("demo/w"))
    assert refused.value.retry_after_s == RETRY_AFTER_S
    await first.aclose()


async def test_waves_are_listed_in_aggregate(scene: Scene, training: Training) -> None:
    await training.declare(wave("Queued", message="needs 2 more device slots"))
    [found] = await scene.client.waves()
    assert (found.wave, found.phase, found.policy_count, len(found.policies)) == ("demo/w", "Queued", 2, 0)
    assert not found.HasField("reward_recent")
    assert await scene.client.waves(BASE) == [found]
    with pytest.raises(errors.BaseModelNotFound, match=f"available: {BASE}"):
        await scene.client.waves("demo/nobody")


def test_the_newest_lease_speaks_and_other_runs_do_not() -> None:
    progresses = {
        "e-0": {NAMES[0]: reported(NAMES[0], 3, lease=7), NAMES[1]: reported(NAMES[1], 1, run="older")},
        "e-1": {NAMES[0]: reported(NAMES[0], 2, lease=8)},
    }
    assert newest_reports(wave(), progresses) == {NAMES[0]: ("e-1", progresses["e-1"][NAMES[0]])}


async def test_ended_policies_are_reported_although_their_engine_restarted(
    scene: Scene, training: Training, tmp_path: Path
) -> None:
    end = Published("sha256:abc", 4, Source("s3://runs/abc"))
    words = tuple(as_recorded(reported(name, 4, Stage.COMPLETE, published=end, reward_recent=0.5)) for name in NAMES)
    await training.declare(msgspec.structs.replace(wave("Complete"), last_words=words))
    await training.report(rewards={NAMES[0]: [0.1, 0.2, 0.3, 0.4]})
    [seen] = [progress async for progress in scene.client.watch("demo/w", history=True)]
    assert (seen.step, seen.reward_recent) == (4, 0.5)
    assert [(each.policy, each.stage, each.step, each.revision) for each in seen.policies] == [
        (name, "Complete", 4, "sha256:abc") for name in NAMES
    ]
    assert plot(seen, tmp_path / "rewards.svg") == 4


def test_the_end_of_a_long_history_is_drawn_where_it_belongs_while_its_policy_loads(tmp_path: Path) -> None:
    policy = PolicyProgress(policy=NAMES[0], stage="Loading", rewards_from=500, rewards=[0.5, 0.75])
    assert plot(WaveProgress(wave="demo/w", policies=[policy]), tmp_path / "rewards.svg") == 502


def test_what_is_left_counts_those_that_load_where_they_stood_and_those_that_wait_in_rounds() -> None:
    runs, loads = reported("demo/a", 1, step_s=2.0), reported("demo/b", 3, Stage.LOADING)
    over = reported("demo/c", 4, Stage.COMPLETE)
    train = wave().train
    assert eta_s(train, [runs, over]) == 6
    assert eta_s(train, [runs, loads, over]) == 6, "side by side"
    assert eta_s(train, [runs, loads, over, None, None]) == 14
    assert eta_s(train, [runs, loads, over, None, None, None]) == 22
    assert eta_s(msgspec.structs.replace(train, paused=True), [runs, None]) == 6
    assert eta_s(msgspec.structs.replace(train, steps=8), [runs, over]) == 22, "one that is to go on waits for a slot"
    assert eta_s(train, [loads, None]) is None
    assert eta_s(train, [runs, reported("demo/d", 0)]) is None


def test_an_engine_s_word_goes_before_the_record_s_and_adds_to_it() -> None:
    name, end = NAMES[0], Published("sha256:abc", 4, Source("s3://runs/abc"))
    complete = reported(name, 4, Stage.COMPLETE, published=end)
    record = msgspec.structs.replace(wave(), last_words=(as_recorded(complete),))
    for lease in (7, 8):  # it continues, under the same lease or another
        loads = reported(name, 0, Stage.LOADING, lease=lease)
        engine, word = newest_reports(record, {"e-0": {name: loads}})[name]
        assert (engine, word.stage, word.step, word.published) == ("e-0", Stage.LOADING, 4, end)
    older = reported(name, 3, lease=6)
    assert newest_reports(record, {"e-0": {name: older}})[name][0] == ""
