"""Courses that are paused, cancelled or cut off: what is saved, and that they resume as if undisturbed."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load
from structlog.testing import capture_logs

from mint_contracts.training_records import Order, Stage
from mint_engine.policies.courses import roster
from mint_engine.policies.stored import revisions
from mint_engine.policies.stored.checkpoints import BLOB, KEPT, Checkpoints
from mint_engine.policies.stored.store import store_of
from mint_engine.policies.updates.updates import ALONE_S
from mint_engine.training import state
from mint_engine.training.policy import Policy
from tests.engine.training.training_engine import (
    Gate,
    assignment,
    began,
    hold_updates,
    saved,
    train,
    training,
    whole,
)
from tests.waiting import until


async def test_a_policy_that_was_paused_goes_on_as_if_nothing_had_been(base: Path, tmp_path: Path) -> None:
    undisturbed = await whole(base, tmp_path / "whole", "acme/one", steps=6)
    async with training(base, tmp_path, train(steps=6)) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: scene.roster.progress()["acme/one"].step >= 2)
        scene.want(assignment("acme/one", order=Order.PAUSE))
        told = (await scene.ended("acme/one", stage=Stage.PAUSED))["acme/one"]
        assert 2 <= told.step < 6
        await until(lambda: len(scene.residency.slots.free) == 10)
        await scene.complete("acme/one")
        assert saved(scene, "acme/one") == undisturbed


async def test_another_engine_goes_on_where_the_last_checkpoint_is(base: Path, tmp_path: Path) -> None:
    undisturbed = await whole(base, tmp_path / "whole", "acme/one", steps=5)
    async with training(base, tmp_path, train(steps=5)) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: Checkpoints(store_of(scene.store), "acme/one").newest())
        scene.want()  # withdraws the lease, whatever the course is doing
        await until(lambda: len(scene.residency.slots.free) == 10)
        kept, _ = saved(scene, "acme/one")
    async with training(base, tmp_path, train(steps=5)) as scene:
        with capture_logs() as logs:
            await scene.complete("acme/one", lease=2)
        assert began(logs)[0] >= len(kept) > 0  # a thread may have completed one more checkpoint afterwards
        assert saved(scene, "acme/one") == undisturbed


async def test_a_policy_whose_checkpoints_can_not_be_read_fails_and_leaves_what_it_had_published(
    base: Path, tmp_path: Path
) -> None:
    """Starting over under the same name would replace the trained adapter with an untrained one."""
    async with training(base, tmp_path, train(steps=3)) as scene:
        published = (await scene.complete("acme/one")).published
        store = store_of(scene.store)
    folder = Checkpoints(store, "acme/one").folder
    kept = store.names(folder)
    assert len(kept) == KEPT
    for name in kept:
        blob = store.read(f"{folder}/{name}/{BLOB}", 1 << 30)
        store.write(f"{folder}/{name}/{BLOB}", blob[:-1] + b"?")
    async with training(base, tmp_path, train(steps=5)) as scene:
        with capture_logs() as logs:
            scene.want(assignment("acme/one", lease=2))
            failure = await scene.failed("acme/one")
        assert (failure.reason, failure.terminal) == ("CorruptFile", True)
        assert "new AdapterWave" in failure.message
        assert began(logs) == []
        assert revisions.newest(store, "acme/one", 0) == published


async def test_a_failed_policy_goes_on_once_its_files_are_back_and_its_wave_asks_for_it(
    base: Path, tmp_path: Path
) -> None:
    undisturbed = await whole(base, tmp_path / "whole", "acme/one", steps=5)
    async with training(base, tmp_path, train(steps=3)) as scene:
        await scene.complete("acme/one")
        store = store_of(scene.store)
        folder = Checkpoints(store, "acme/one").folder
        blobs = {f"{folder}/{name}/{BLOB}": store.read(f"{folder}/{name}/{BLOB}", 1 << 30)
                 for name in store.names(folder)}  # fmt: skip
        for path, blob in blobs.items():
            store.write(path, blob[:-1] + b"?")
        scene.want(assignment("acme/one"), told=train(steps=5))
        assert "raise spec.train.retry (mint wave resume)" in (await scene.failed("acme/one")).message
        for path, blob in blobs.items():
            store.write(path, blob)
        scene.want(assignment("acme/one"), told=train(steps=5))
        assert scene.roster.progress()["acme/one"].stage is Stage.FAILED, "not before it is asked for"
        scene.want(assignment("acme/one"), told=train(steps=5, retry=1))
        assert scene.roster.progress()["acme/one"].stage is Stage.FAILED, "nor under the lease of what failed"
        scene.want(assignment("acme/one", lease=2))
        await until(lambda: scene.roster.progress()["acme/one"].stage is Stage.COMPLETE)
        told = scene.roster.progress()["acme/one"]
        assert (told.step, told.failure, told.retry) == (5, None, 1)
        assert saved(scene, "acme/one") == undisturbed


async def test_an_engine_that_ends_saves_what_is_finished(base: Path, tmp_path: Path) -> None:
    undisturbed = await whole(base, tmp_path / "whole", "acme/one", steps=6)
    seldom = train(steps=6, checkpoint_every_steps=100)
    async with training(base, tmp_path, seldom) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: scene.roster.progress()["acme/one"].step >= 2)
        await scene.roster.close()
        rewards, _ = saved(scene, "acme/one")
        assert 2 <= len(rewards) <= 6
    async with training(base, tmp_path, seldom) as scene:
        with capture_logs() as logs:
            await scene.complete("acme/one", lease=2)
        assert began(logs) == [len(rewards)]
        assert saved(scene, "acme/one") == undisturbed


async def test_an_engine_that_ends_waits_for_the_checkpoint_that_is_on_its_way(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_bytes = state.to_bytes
    with Gate(after=1) as saving:

        def held(policy: Policy) -> bytearray:
            saving.go_by()
            return to_bytes(policy)

        monkeypatch.setattr(state, "to_bytes", held)
        async with training(base, tmp_path, train(steps=2)) as scene:
            scene.want(assignment("acme/one"))
            await saving.reached()
            closing = asyncio.create_task(scene.roster.close())
            await until(lambda: not scene.roster.policies)
            saving.open()
            await closing
            rewards, _ = saved(scene, "acme/one")
            assert len(rewards) == 2


async def test_a_step_that_is_learnt_counts_though_its_course_was_cancelled_meanwhile(
    base: Path, tmp_path: Path
) -> None:
    async with training(base, tmp_path, train(steps=6, checkpoint_every_steps=100)) as scene:
        scene.want(assignment("acme/one"))
        step_thread, learn = scene.context.step_thread, scene.context.step_thread.learn
        at_step = 2

        async def learn_and_end(*given: Any, **options: Any) -> Any:
            if scene.roster.progress()["acme/one"].step == at_step:
                closing.append(asyncio.create_task(scene.roster.close()))
            return await learn(*given, **options)

        closing: list[asyncio.Task[None]] = []
        step_thread.learn = learn_and_end  # type: ignore[method-assign]
        await until(lambda: closing and closing[0].done())
        rewards, _ = saved(scene, "acme/one")
        assert len(rewards) == at_step + 1


@pytest.mark.parametrize("epochs", [1, 2])
async def test_an_engine_that_ends_in_the_middle_of_an_update_saves_nothing_of_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    seldom: dict[str, Any] = {"steps": 3, "inner_epochs": epochs, "checkpoint_every_steps": 100}
    undisturbed = await whole(base, tmp_path / "whole", "acme/one", **seldom)
    monkeypatch.setattr(roster, "CLOSE_S", ALONE_S)  # the step thread is held longer; it stops after its piece
    async with training(base, tmp_path, train(**seldom)) as scene:
        with Gate(after=2 * epochs - 1) as updating:  # the last epoch of the second step
            hold_updates(scene, updating)
            scene.want(assignment("acme/one"))
            await updating.reached()
            await scene.roster.close()
            draining = asyncio.create_task(scene.server.drain(20))
            await until(lambda: scene.stepper._stopping)
        assert await draining
        await until(lambda: not scene.roster._leaving)
        kept = Checkpoints(store_of(scene.store), "acme/one").newest()
        assert kept is None or "gradient" not in load(kept[1])
    async with training(base, tmp_path, train(**seldom)) as scene:
        with capture_logs() as logs:
            await scene.complete("acme/one", lease=2)
        assert began(logs) == [1 if epochs == 1 else 0]
        assert saved(scene, "acme/one") == undisturbed


async def test_a_paused_policy_can_be_cancelled(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(steps=100)) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: scene.roster.progress()["acme/one"].step >= 1)
        scene.want(assignment("acme/one", order=Order.PAUSE))
        paused = (await scene.ended("acme/one", stage=Stage.PAUSED))["acme/one"]
        scene.want(assignment("acme/one", order=Order.CANCEL), told=train(steps=100, cancelled=True, retry=1))
        told = scene.roster.progress()["acme/one"]
        assert (told.stage, told.step, told.retry) == (Stage.CANCELLED, paused.step, 1)
        scene.want(assignment("acme/one", order=Order.CANCEL))
        assert scene.roster.progress()["acme/one"].stage is Stage.CANCELLED


async def test_a_cancelled_policy_is_saved_and_publishes_nothing_more(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(steps=100)) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: scene.roster.progress()["acme/one"].step >= 1)
        scene.want(assignment("acme/one", order=Order.CANCEL))
        told = (await scene.ended("acme/one", stage=Stage.CANCELLED))["acme/one"]
        rewards, _ = saved(scene, "acme/one")
        assert len(rewards) == told.step
        assert revisions.newest(store_of(scene.store), "acme/one", 0) is None
