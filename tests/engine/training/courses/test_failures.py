"""Courses that fail report the reason, fail alone and release everything they held."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mint_contracts.errors import SourceUnavailable
from mint_contracts.training import Dataset, Evaluation, Loss, NumericAnswer, Optimizer, Regex, Reward, TrainSampling
from mint_contracts.training_records import Order, Stage
from mint_engine.examples.draw import draw
from mint_engine.policies import patience
from mint_engine.policies.stored.store import LocalStore
from mint_engine.rewards.scorer import Scorer
from tests.engine.running import CONTEXT
from tests.engine.training.training_engine import LINES, assignment, saved, train, training, whole
from tests.waiting import until


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"dataset": None}, "InvalidRequest", "has no dataset"),
        ({"reward": None}, "InvalidRequest", "has no reward"),
        (
            {"reward": None, "algorithm": "SFT", "evaluation": Evaluation()},
            "InvalidRequest",
            "has no reward to score its evaluations by",
        ),
        (
            {"reward": None, "algorithm": "SFT", "sampling": TrainSampling(max_tokens=1)},
            "BadExample",
            "sampling.maxTokens, which bounds answers, too, is 1",
        ),
        ({"dataset": Dataset(lines=["{"])}, "BadExample", "line 1: is not valid JSON"),
        (
            {"dataset": Dataset(lines=LINES, template_variables={"enable_thinking": False})},
            "BadExample",
            "dataset.templateVariables: have 'enable_thinking', which this base's chat template does not use",
        ),
        ({"reward": Reward(regex=Regex("("))}, "InvalidRequest", "not a valid regular expression"),
        ({"reward": Reward(numeric_answer=NumericAnswer())}, "BadExample", "is not a number"),
        ({"loss": Loss(type="cross_entropy")}, "InvalidRequest", "cross_entropy"),
    ],
)
async def test_a_policy_that_can_not_be_trained_fails_with_the_reason_and_alone(
    base: Path, tmp_path: Path, changes: dict[str, Any], reason: str, message: str
) -> None:
    async with training(base, tmp_path, train(**changes)) as scene:
        scene.want(assignment("acme/one"))
        failure = await scene.failed("acme/one")
        assert failure.reason == reason
        assert message in failure.message
        await until(lambda: len(scene.residency.slots.free) == 10)


@pytest.mark.parametrize("long", ["prompt", "answer", "held out"])
async def test_examples_that_do_not_fit_are_reported_when_a_policy_begins(
    base: Path, tmp_path: Path, long: str
) -> None:
    """Examples that no step draws may have any length."""
    told, text = assignment("acme/one"), "word " * CONTEXT
    lines = [{"prompt": f"say {number}", "answer": "yes"} for number in range(8)]
    third = draw(len(lines), told.settings.seed or 0, 2, 2)[0]
    lines[third]["answer" if long == "answer" else "prompt"] = text
    examples = Dataset(lines=[json.dumps(each) for each in lines])
    changes: dict[str, Any] = {"dataset": examples, "steps": 3, "checkpoint_every_steps": 1}
    if long == "answer":
        changes |= {"algorithm": "SFT"}
    elif long == "held out":
        changes |= {"dataset": Dataset(lines=LINES), "evaluation": Evaluation(dataset=examples, prompts=8)}
    async with training(base, tmp_path, train(**changes)) as scene:
        scene.want(told)
        ended = (await scene.ended("acme/one", stage=Stage.FAILED))["acme/one"]
        assert ended.failure is not None
        assert (ended.step, ended.saved, ended.failure.reason) == (0, 0, "BadExample")
        says = "has an answer of" if long == "answer" else "can't be asked: This model's maximum context length is"
        assert says in ended.failure.message
    if long != "held out":
        async with training(base, tmp_path / "fewer", train(**changes | {"steps": 2})) as scene:
            scene.want(told)
            assert (await scene.ended("acme/one"))["acme/one"].step == 2


@pytest.mark.parametrize("where", ["drawn", "held out", "held out of answers to learn"])
async def test_an_example_that_its_reward_can_not_judge_is_told_as_a_policy_begins(
    base: Path, tmp_path: Path, where: str
) -> None:
    """Examples that no step draws, or that are learnt from but not scored, may have any answer."""
    told = assignment("acme/one")
    lines = [{"prompt": f"say {number}", "answer": f"it is {number}"} for number in range(8)]
    third = draw(len(lines), told.settings.seed or 0, 2, 2)[0]
    right = Dataset(lines=[json.dumps(each) for each in lines])
    lines[third]["answer"] = "??"
    examples = Dataset(lines=[json.dumps(each) for each in lines])
    changes: dict[str, Any] = {"steps": 3, "dataset": examples, "reward": Reward(numeric_answer=NumericAnswer())}
    if where != "drawn":
        changes |= {"evaluation": Evaluation(dataset=examples, prompts=8), "dataset": right}
    if where == "held out of answers to learn":
        changes |= {"algorithm": "SFT", "dataset": examples}
    async with training(base, tmp_path, train(**changes)) as scene:
        scene.want(told)
        ended = (await scene.ended("acme/one", stage=Stage.FAILED))["acme/one"]
        assert ended.failure is not None
        assert (ended.step, ended.saved, ended.failure.reason) == (0, 0, "BadExample")
        assert f"example 'say {third}': has the answer '??', which is not a number" in ended.failure.message
    changes |= {"evaluation": None} if where != "drawn" else {"steps": 2}
    async with training(base, tmp_path / "fewer", train(**changes)) as scene:
        scene.want(told)
        await scene.ended("acme/one")


async def test_a_loss_that_grpo_has_not_fails_its_own_policy_alone(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(steps=1)) as scene:
        own = Loss(type="cross_entropy")
        scene.want(assignment("acme/one"), assignment("acme/two", loss=own))
        failure = await scene.failed("acme/two")
        assert "cannot learn its own completions by cross_entropy" in failure.message
        await scene.ended("acme/one")


async def test_a_neighbour_that_fails_changes_nothing(base: Path, tmp_path: Path) -> None:
    alone = await whole(base, tmp_path / "alone", "acme/one")
    async with training(base, tmp_path) as scene:
        wild = Optimizer(learning_rate=1e30, max_grad_norm=0.0)
        scene.want(assignment("acme/one"), assignment("acme/wild", optimizer=wild))
        await until(lambda: scene.roster.progress()["acme/one"].stage is Stage.COMPLETE)
        assert saved(scene, "acme/one") == alone
        told = (await scene.ended("acme/wild", stage=Stage.FAILED))["acme/wild"]
        assert told.step == 1, "what its first step made of it went into a slot"
        assert told.failure is not None
        assert "acme/wild: computes NaN or infinity" in told.failure.message


@pytest.mark.parametrize(("defects", "stage"), [(1, Stage.COMPLETE), (2, Stage.FAILED)])
async def test_a_policy_outlives_a_step_with_a_defect_which_another_request_may_have_and_fails_at_the_next(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defects: int, stage: Stage
) -> None:
    undisturbed = await whole(base, tmp_path / "whole", "acme/one", prompts_per_step=1)
    async with training(base, tmp_path, train(prompts_per_step=1)) as scene:
        generation, left = scene.stepper._generation, [RuntimeError("memory is full")] * defects
        compute = generation._compute

        def defective(shares: Any) -> Any:
            if left:
                raise left.pop()
            return compute(shares)

        monkeypatch.setattr(generation, "_compute", defective)
        scene.want(assignment("acme/one"))
        failure = (await scene.ended("acme/one", stage=stage))["acme/one"].failure
        if stage is Stage.FAILED:
            assert failure is not None
            assert "a step failed: memory is full" in failure.message
        else:
            assert saved(scene, "acme/one") == undisturbed


async def test_a_policy_whose_connection_can_not_be_closed_lets_go_of_its_slot_and_weights_all_the_same(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Scorer) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Scorer, "close", fail)
    async with training(base, tmp_path, train(steps=1)) as scene:
        await scene.complete("acme/one")
        await until(lambda: len(scene.residency.slots.free) == scene.residency.slots.count)
        assert await scene.context.step_thread.call(lambda trainer: trainer.names) == frozenset()
        with suppress(RuntimeError):
            await scene.roster._running["acme/one"].task


@pytest.mark.parametrize("away", ["names", "write"])
async def test_a_cancelled_policy_whose_store_stays_away_is_cancelled(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """Cancelled while loading, or after learning something, which is then lost: neither is a failure."""
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.2)

    def fail(store: LocalStore, path: str, *_: object) -> None:
        raise SourceUnavailable(f"store {store.source.uri!r}", f"could not serve {path}")

    monkeypatch.setattr(LocalStore, away, fail)
    async with training(base, tmp_path, train(steps=1000)) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: (told := scene.roster.progress()["acme/one"]).step or told.failure)
        scene.want(assignment("acme/one", order=Order.CANCEL))
        told = (await scene.ended("acme/one", stage=Stage.CANCELLED))["acme/one"]
        assert told.failure is None


async def test_a_policy_whose_volume_is_not_mounted_yet_waits_for_it_and_goes_on_where_it_was(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.2)
    async with training(base, tmp_path, train(steps=2)) as scene:
        await scene.complete("acme/one")
        learnt = scene.roster.rewards()["acme/one"]
    async with training(base, tmp_path, train(steps=3)) as scene:
        (tmp_path / "runs").rename(tmp_path / "elsewhere")
        scene.want(assignment("acme/one", lease=2))
        await until(lambda: scene.roster.progress()["acme/one"].failure)
        told = scene.roster.progress()["acme/one"]
        assert told.failure is not None
        assert (told.stage, told.failure.reason) == (Stage.LOADING, "SourceUnavailable")
        assert "does not exist; mount its volume" in told.failure.message
        (tmp_path / "elsewhere").rename(tmp_path / "runs")
        assert (await scene.ended("acme/one"))["acme/one"].step == 3
        assert list(scene.roster.rewards()["acme/one"])[:2] == list(learnt)
