"""Training metrics equal what was trained: real courses compared with the text that an engine exports."""

from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from mint_contracts.training import Evaluation, ExactMatch, Reward
from mint_contracts.training_records import Stage
from mint_engine.policies.courses.course import MOST_SKIPPED
from mint_engine.training.example import PolicyBatch
from tests.engine.training.training_engine import Scene, assignment, train, training

NAMES = ("acme/one", "acme/two")
LABELS = {
    "mint_train_steps": set(),
    "mint_train_steps_skipped": {"reason"},
    "mint_train_tokens": set(),
    "mint_train_reward": {"le"},
    "mint_train_seconds": {"phase", "le"},
    "mint_train_piece_seconds": {"le"},
    "mint_train_policies_together": {"le"},
    "mint_train_drift": {"le"},
    "mint_train_beyond_band": {"le"},
    "mint_train_policies": {"stage"},
}


def scraped() -> dict[str, float]:
    """Return the training metrics that an engine exports, by series in Prometheus's form `name{label="value"}`."""
    found = {}
    for family in text_string_to_metric_families(generate_latest().decode()):
        for sample in family.samples if family.name.startswith("mint_train") else ():
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


class Grown:
    """The growth of each series since this was made; needed because the registry is process-wide."""

    def __init__(self) -> None:
        self._before = scraped()

    def __getitem__(self, series: str) -> float:
        now = scraped()
        return now.get(series, 0.0) - self._before.get(series, 0.0)

    def phases(self, what: str = "count") -> dict[str, float]:
        """Return the growth of mint_train_seconds by phase, without phases that have not grown."""
        names = ("load", "rollout", "reward", "update", "step", "evaluate", "save", "publish")
        found = {name: self[f'mint_train_seconds_{what}{{phase="{name}"}}'] for name in names}
        return {name: value for name, value in found.items() if value}


@pytest.fixture
def grown() -> Grown:
    return Grown()


def told(scene: Scene) -> tuple[list[float], int]:
    """Return the reward of each finished step of all policies, and the number of tokens that they learnt from."""
    rewards = [reward for of in scene.roster.rewards().values() for reward in of]
    return rewards, sum(each.tokens for each in scene.roster.progress().values())


async def test_steps_rewards_tokens_and_times_are_those_of_the_courses(
    base: Path, tmp_path: Path, grown: Grown
) -> None:
    wave = train(
        steps=3, evaluation=Evaluation(every_steps=10, prompts=2)
    )  # also made before the first step and after the last
    with capture_logs() as lines:
        async with training(base, tmp_path, wave) as scene:
            scene.want(*[assignment(name) for name in NAMES])
            await scene.ended(*NAMES)
            rewards, tokens = told(scene)
            now = scraped()
    steps = [line for line in lines if line["event"] == "step"]
    learnt = [line for line in steps if "grad_norm" in line]  # the groups of the other steps had no signal
    assert len(steps) == len(rewards) == grown["mint_train_steps_total"] == 6
    assert grown['mint_train_steps_skipped_total{reason="no signal"}'] == 6 - len(learnt)
    assert grown["mint_train_tokens_total"] == tokens > 0
    assert grown["mint_train_reward_count"] == 6
    assert grown["mint_train_reward_sum"] == pytest.approx(sum(rewards))
    updates = len(learnt)
    counts = {"load": 2, "rollout": 6, "reward": 6, "update": updates, "step": 6, "evaluate": 4, "save": 8}
    assert grown.phases() == counts | {"publish": 2}
    seconds = grown.phases("sum")
    assert seconds["step"] == pytest.approx(sum(line["seconds"] for line in steps), abs=0.0005 * 6 + 1e-9)
    assert seconds["step"] > seconds["rollout"] + seconds["reward"] + seconds["update"], "these are parts of it"
    assert grown["mint_train_policies_together_sum"] == updates
    assert updates / 2 <= grown["mint_train_policies_together_count"] <= updates
    assert grown["mint_train_piece_seconds_count"] >= grown["mint_train_policies_together_count"]
    for figure, value in (("drift", lambda line: line["drift"]), ("beyond_band", lambda line: 1 - line["kept"])):
        assert grown[f"mint_train_{figure}_count"] == updates
        assert grown[f"mint_train_{figure}_sum"] == pytest.approx(sum(map(value, learnt)), rel=1e-3, abs=1e-3)
    stages = {stage: now[f'mint_train_policies{{stage="{stage.lower()}"}}'] for stage in Stage}
    assert stages == dict.fromkeys(Stage, 0.0) | {Stage.COMPLETE: 2.0}


async def test_steps_without_a_signal_are_steps_in_which_nothing_was_learnt(
    base: Path, tmp_path: Path, grown: Grown
) -> None:
    async with training(base, tmp_path, train(reward=Reward(exact_match=ExactMatch()), steps=2)) as scene:
        await scene.complete("acme/one")
    assert grown["mint_train_steps_total"] == grown['mint_train_steps_skipped_total{reason="no signal"}'] == 2
    assert (grown["mint_train_tokens_total"], grown["mint_train_policies_together_count"]) == (0, 0)
    assert (grown["mint_train_reward_count"], grown["mint_train_reward_sum"]) == (2, 0)
    assert grown.phases() == {"load": 1, "rollout": 2, "reward": 2, "step": 2, "save": 2, "publish": 1}


async def test_supervised_steps_have_no_rollouts_and_no_rewards(base: Path, tmp_path: Path, grown: Grown) -> None:
    async with training(base, tmp_path, train(algorithm="SFT", reward=None, steps=2)) as scene:
        await scene.complete("acme/one")
        _, tokens = told(scene)
    assert grown["mint_train_steps_total"] == 2
    assert grown["mint_train_tokens_total"] == tokens > 0
    assert grown["mint_train_reward_count"] == 0
    assert grown.phases() == {"load": 1, "update": 2, "step": 2, "save": 2, "publish": 1}


async def test_each_inner_epoch_is_a_forward_and_backward_and_all_of_them_one_update(
    base: Path, tmp_path: Path, grown: Grown
) -> None:
    async with training(base, tmp_path, train(steps=1, inner_epochs=3)) as scene:
        await scene.complete("acme/one")
    assert grown['mint_train_steps_skipped_total{reason="no signal"}'] == 0
    assert grown["mint_train_policies_together_count"] == grown["mint_train_policies_together_sum"] == 3
    assert grown.phases()["update"] == 1


async def test_steps_whose_gradient_is_not_finite_are_told_apart_and_spoil_no_sum(
    base: Path, tmp_path: Path, grown: Grown
) -> None:
    async with training(base, tmp_path, train(steps=10)) as scene:
        step_thread, learn = scene.context.step_thread, scene.context.step_thread.learn

        async def learn_nonsense(batch: PolicyBatch, *given: Any, **options: Any) -> Any:
            spoilt = [replace(each, sampler_logprobs=[nan] * len(each.tokens)) for each in batch.examples]
            return await learn(replace(batch, examples=spoilt), *given, **options)

        step_thread.learn = learn_nonsense  # type: ignore[method-assign]
        scene.want(assignment("acme/one"))
        failure = await scene.failed("acme/one")
        assert failure.reason == "NonFiniteWeights"
        assert scraped()['mint_train_policies{stage="failed"}'] == 1
    assert grown['mint_train_steps_skipped_total{reason="not finite"}'] == MOST_SKIPPED
    silent = grown['mint_train_steps_skipped_total{reason="no signal"}']
    assert grown["mint_train_steps_total"] == MOST_SKIPPED - 1 + silent, "at the last one its policy failed"
    assert (grown["mint_train_drift_count"], grown["mint_train_drift_sum"]) == (0, 0)


async def test_no_series_names_a_policy_and_seconds_are_called_so(base: Path, tmp_path: Path) -> None:
    """There can be thousands of policies; their individual progress is in the wave's status."""
    async with training(base, tmp_path, train(steps=1)) as scene:
        await scene.complete("acme/one")
    text = generate_latest().decode()
    assert "acme" not in text
    families = [
        each
        for each in text_string_to_metric_families(text)
        if each.name.startswith("mint_train") and not each.name.endswith("_created")
    ]
    assert {each.name: {name for sample in each.samples for name in sample.labels} for each in families} == LABELS
    timed = {each.name for each in families if "econds of" in each.documentation or "piece" in each.documentation}
    assert timed == {name for name in LABELS if name.endswith("_seconds")}
