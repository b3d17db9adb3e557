"""A training store that comes up empty though checkpoints are known to be there is waited for and left unchanged."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mint_contracts.training_records import Order, Stage
from mint_engine.policies import patience
from mint_engine.policies.stored.checkpoints import Checkpoints, Record
from mint_engine.policies.stored.store import store_of
from tests.engine.training.training_engine import Gate, Scene, assignment, began, saved, train, training, whole
from tests.waiting import until


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.2)


async def waits(scene: Scene, policy: str) -> str:
    """Wait until a policy reports that it waits for its store; return the failure's message."""
    await until(lambda: scene.roster.progress()[policy].failure)
    told = scene.roster.progress()[policy]
    assert told.failure is not None
    assert (told.stage, told.failure.reason, told.failure.terminal) == (Stage.LOADING, "SourceUnavailable", False)
    return told.failure.message


async def test_a_policy_whose_store_has_been_emptied_waits_and_goes_on_once_its_checkpoint_is_back(
    base: Path, tmp_path: Path
) -> None:
    undisturbed = await whole(base, tmp_path / "whole", "acme/one", steps=5)
    async with training(base, tmp_path, train(steps=3)) as scene:
        assert (await scene.complete("acme/one")).saved == 3
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    async with training(base, tmp_path, train(steps=5)) as scene:
        with capture_logs() as logs:
            scene.want(assignment("acme/one", lease=2, saved=3))
            said = await waits(scene, "acme/one")
            assert "has no checkpoint of policy 'acme/one'" in said
            assert "saved at step 3 or later; mount its volume" in said
            assert scene.roster.progress()["acme/one"].saved == 3, "it is not forgotten meanwhile"
            assert list((tmp_path / "runs").rglob("*")) == [], "nothing is written in its place"
            (tmp_path / "elsewhere").rename(tmp_path / "runs")
            told = (await scene.ended("acme/one"))["acme/one"]
        assert (told.step, told.saved, told.failure) == (5, 5, None)
        assert began(logs) == [3]
        assert saved(scene, "acme/one") == undisturbed


async def test_a_policy_of_which_nothing_is_known_begins_anew_beside_one_that_waits(
    base: Path, tmp_path: Path
) -> None:
    async with training(base, tmp_path, train(steps=2)) as scene:
        with capture_logs() as logs:
            scene.want(assignment("acme/one", saved=1), assignment("acme/two"))
            await waits(scene, "acme/one")
            await until(lambda: scene.roster.progress()["acme/two"].stage is Stage.COMPLETE)
        assert began(logs) == [0]
        assert Checkpoints(store_of(scene.store), "acme/one").newest() is None


async def test_a_policy_that_waits_for_its_checkpoint_can_be_cancelled(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    async with training(base, tmp_path, train(steps=2)) as scene:
        scene.want(assignment("acme/one", saved=1))
        await waits(scene, "acme/one")
        scene.want(assignment("acme/one", order=Order.CANCEL, saved=1))
        told = (await scene.ended("acme/one", stage=Stage.CANCELLED))["acme/one"]
        assert (told.failure, told.saved) == (None, 1)
        await until(lambda: len(scene.residency.slots.free) == scene.residency.slots.count)


async def test_a_step_is_told_as_saved_once_its_checkpoint_is_whole(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Checkpoints.save
    with Gate() as writing:

        def held(checkpoints: Checkpoints, record: Record, blob: bytes) -> None:
            writing.go_by()
            save(checkpoints, record, blob)

        monkeypatch.setattr(Checkpoints, "save", held)
        async with training(base, tmp_path, train(steps=3)) as scene:
            scene.want(assignment("acme/one"))
            await writing.reached()
            await until(lambda: scene.roster.progress()["acme/one"].step > 1)
            assert scene.roster.progress()["acme/one"].saved == 0
            writing.open()
            assert (await scene.ended("acme/one"))["acme/one"].saved == 3
