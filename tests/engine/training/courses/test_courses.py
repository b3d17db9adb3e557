"""A course from its first step to its last: which signal it learns from, and that neighbours change nothing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load
from structlog.testing import capture_logs

from mint_contracts.source import parent
from mint_contracts.step_figures import figures_of_step
from mint_contracts.training import ExactMatch, Loss, Optimizer, Reward, TrainSampling
from mint_contracts.training_records import Order, Stage, published_in
from mint_engine.policies.courses.lessons import LEAST_LOGPROB
from mint_engine.policies.stored.checkpoints import Checkpoints
from mint_engine.policies.stored.series import Name
from mint_engine.policies.stored.store import store_of
from mint_engine.training.example import PolicyBatch
from mint_engine.training.work import Share, Work
from tests.engine.running import save_adapter
from tests.engine.training.training_engine import Scene, assignment, saved, train, training, whole
from tests.waiting import until


async def test_a_policy_learns_for_its_steps_and_lets_go_of_its_slot(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path) as scene:
        told = await scene.complete("acme/one")
        assert (told.step, told.steps, told.stage, told.lease) == (3, 3, Stage.COMPLETE, 1)
        assert told.tokens > 0
        assert told.reward_best == max(scene.roster.rewards()["acme/one"])
        assert len(scene.roster.rewards()["acme/one"]) == 3
        await until(lambda: len(scene.residency.slots.free) == 10)


async def test_each_step_tells_what_came_of_it_in_a_line(base: Path, tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with training(base, tmp_path, train(loss=Loss(kl_coefficient=0.1))) as scene:
            told, curve = await scene.complete("acme/one"), scene.roster.curves()["acme/one"]
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert {"reward", "tokens", "seconds"} < steps[0].keys()
    assert all(
        {"completion_length", "truncated", "entropy", "reward_std", "no_signal"} < line.keys() for line in steps
    )
    learnt = [line for line in steps if "grad_norm" in line]  # steps without any signal make no update
    assert all({"kl", "clipped", "ratio", "drift", "kept"} < line.keys() for line in learnt)
    assert learnt[0]["grad_norm"] > 0
    assert curve == tuple(figures_of_step(line["step"], line) for line in steps)
    assert told.figures == curve[-1]


async def test_numbers_are_the_same_alone_and_together(base: Path, tmp_path: Path) -> None:
    names = [f"acme/p{n}" for n in range(4)]
    async with training(base, tmp_path / "together") as scene:
        scene.want(*[assignment(name) for name in names])
        await scene.ended(*names)
        together = {name: saved(scene, name) for name in names}
    for name in names[:2]:
        assert await whole(base, tmp_path / name, name) == together[name]
    assert len({state for _, state in together.values()}) == len(names)


OWN = {
    "acme/usual": None,
    "acme/grpo": Loss(type="grpo", clip_low=0.1, clip_high=0.4, scale_rewards="batch"),
    "acme/cispo": Loss(type="cispo", clip_high=3.0, kl_coefficient=0.1),
    "acme/dr": Loss(type="dr_grpo", scale_rewards="none", filter_groups=False, ratio_low=0.0, ratio_high=0.0),
}


async def test_policies_with_a_loss_each_learn_in_one_batch_as_each_would_in_a_wave_of_that_loss(
    base: Path, tmp_path: Path
) -> None:
    async with training(base, tmp_path / "together") as scene:
        mixed = batched_together(scene)
        scene.want(*[assignment(name, loss=loss) for name, loss in OWN.items()])
        await scene.ended(*OWN)
        together = {name: saved(scene, name) for name in OWN}
    assert max(len(types) for types in mixed) > 1, "losses of several types in one forward and backward"
    for name, loss in OWN.items():
        told = {"loss": loss} if loss is not None else {}
        assert await whole(base, tmp_path / name, name, **told) == together[name]
    assert await whole(base, tmp_path / "default", "acme/grpo") != together["acme/grpo"]


def batched_together(scene: Scene) -> list[set[str]]:
    """Record the loss types in each work from now on; until one is mixed, updates wait for a second policy."""
    updates = scene.updates
    ripe, begin, found = updates._ripe, updates.trainer.begin, list[set[str]]()

    def patiently() -> bool:
        return ripe() if any(len(types) > 1 for types in found) else len(updates._ready) > 1

    def noted(batches: Sequence[PolicyBatch | Share], *, checked: bool = False, most: int = 0) -> Work:
        found.append({each.batch.loss.type if isinstance(each, Share) else each.loss.type for each in batches})
        return begin(batches, checked=checked, most=most)

    updates._ripe = patiently  # type: ignore[method-assign]
    updates.trainer.begin = noted  # type: ignore[method-assign]
    return found


async def test_supervised_policies_learn_by_cross_entropy_whatever_the_waves_loss_is(
    base: Path, tmp_path: Path
) -> None:
    told: dict[str, Any] = {"algorithm": "SFT", "reward": None, "steps": 2}
    plain = await whole(base, tmp_path / "plain", "acme/one", **told)
    assert await whole(base, tmp_path / "other", "acme/one", loss=Loss(type="grpo"), **told) == plain


async def test_an_update_follows_only_from_groups_with_a_signal(base: Path, tmp_path: Path) -> None:
    never = Reward(exact_match=ExactMatch())
    async with training(base, tmp_path, train(reward=never, steps=2)) as scene:
        told = await scene.complete("acme/one")
        assert (told.step, told.reward_mean, told.tokens) == (2, 0.0, 0)


async def test_of_completions_that_are_cut_off_nothing_is_learnt_where_the_loss_says_so(
    base: Path, tmp_path: Path
) -> None:
    loss, most = Loss(mask_truncated_completions=True), 8
    told = train(loss=loss, sampling=TrainSampling(max_tokens=most, stop=["e", "a"]), steps=1, group_size=16)
    async with training(base, tmp_path, told) as scene:
        batches: list[PolicyBatch] = []
        step_thread, learn = scene.context.step_thread, scene.context.step_thread.learn

        async def noted(batch: PolicyBatch, *args: Any, **options: Any) -> Any:
            batches.append(batch)
            return await learn(batch, *args, **options)

        step_thread.learn = noted  # type: ignore[method-assign]
        tokens = (await scene.complete("acme/one")).tokens
    [batch] = batches
    lengths = {id(each): sum(logprob != 0.0 for logprob in each.sampler_logprobs) for each in batch.examples}
    cut = [each for each in batch.examples if not any(each.weights)]
    assert 0 < len(cut) < len(batch.examples)
    assert all(lengths[id(each)] == most for each in cut)
    assert all(each in cut or lengths[id(each)] == sum(each.weights) for each in batch.examples)
    assert tokens == sum(len(each.tokens) + 1 for each in batch.examples if each not in cut)


async def test_rollouts_are_learnt_at_the_temperature_they_were_sampled_at(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(sampling=TrainSampling(max_tokens=8, temperature=0.5))) as scene:
        drifts: list[float] = []
        step_thread, learn = scene.context.step_thread, scene.context.step_thread.learn

        async def noted(*args: Any, **options: Any) -> Any:
            learnt = await learn(*args, **options)
            drifts.append(learnt.outcome.metrics["drift"])
            return learnt

        step_thread.learn = noted  # type: ignore[method-assign]
        await scene.complete("acme/one")
        assert drifts
        assert max(drifts) < 1e-4, "trainer and sampler tell a token's probability alike, as it was drawn"


async def test_supervised_learning_raises_the_likelihood_of_the_answers(base: Path, tmp_path: Path) -> None:
    told = train(algorithm="SFT", reward=None, steps=12, prompts_per_step=4, optimizer=Optimizer(learning_rate=2e-2))
    async with training(base, tmp_path, told) as scene:
        await scene.complete("acme/one")
        rewards = scene.roster.rewards()["acme/one"]
        assert rewards[-1] > rewards[0] + 1.0


async def test_a_supervised_step_whose_loss_is_no_number_spoils_no_checkpoint(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(algorithm="SFT", reward=None, steps=2)) as scene:
        step_thread, learn = scene.context.step_thread, scene.context.step_thread.learn

        async def learn_beyond(batch: PolicyBatch, *given: Any, **options: Any) -> Any:
            step_thread.learn = learn  # type: ignore[method-assign]
            beyond = [replace(each, weights=[3e38 * bool(w) for w in each.weights]) for each in batch.examples]
            return await learn(replace(batch, examples=beyond), *given, **options)

        step_thread.learn = learn_beyond  # type: ignore[method-assign]
        told = await scene.complete("acme/one")
        rewards, _ = saved(scene, "acme/one")
        assert rewards[0] == LEAST_LOGPROB < rewards[1] < 0
        assert told.reward_best == rewards[1]


async def test_a_policy_starts_from_an_adapter(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "adapters" / "acme" / "parent", rank=4)
    never = Reward(exact_match=ExactMatch())
    async with training(base, tmp_path, train(reward=never, steps=1)) as scene:
        published = (await scene.complete("acme/child", start_from="acme/parent")).published
        assert published is not None
        begun_from = await scene.residency.lending.read("acme/parent")
        assert parent(published.source) == published_in(scene.store, "acme/child").uri
        with (loader := scene.residency._climber._loader).disk.using(published.source):
            assert loader.load(published.source).run.equal(begun_from.run)


async def test_more_steps_while_a_policy_runs_stretch_its_schedule(base: Path, tmp_path: Path) -> None:
    falling = {"optimizer": Optimizer(learning_rate=1e-2, schedule="linear"), "checkpoint_every_steps": 3}
    async with training(base, tmp_path, train(steps=3, **falling)) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: scene.roster.progress()["acme/one"].step)
        scene.want(assignment("acme/one"), told=train(steps=6, **falling))
        await until(lambda: scene.roster.progress()["acme/one"].step == 6)
        await scene.ended("acme/one")
        checkpoints = Checkpoints(store_of(scene.store), "acme/one")
        third, sixth = (load(checkpoints.read(str(Name(1, step))))["weights"] for step in (3, 6))
        assert not third.equal(sixth), "the old end was the schedule's end"


async def test_more_steps_for_a_complete_policy_are_taken(base: Path, tmp_path: Path) -> None:
    undisturbed = await whole(base, tmp_path / "whole", "acme/one", steps=4)
    async with training(base, tmp_path, train(steps=2)) as scene:
        await scene.complete("acme/one")
        scene.want(assignment("acme/one"), told=train(steps=4))
        await until(lambda: scene.roster.progress()["acme/one"].step == 4)
        await scene.ended("acme/one")
        assert saved(scene, "acme/one") == undisturbed


@pytest.mark.parametrize(("order", "stage"), [(Order.PAUSE, Stage.PAUSED), (Order.CANCEL, Stage.CANCELLED)])
async def test_a_complete_policy_that_is_asked_for_more_steps_and_told_to_stop_stops(
    base: Path, tmp_path: Path, order: Order, stage: Stage
) -> None:
    """It stops as a paused policy does, which waits for further orders in the same way."""
    async with training(base, tmp_path, train(steps=2)) as scene:
        await scene.complete("acme/one")
        scene.want(assignment("acme/one", order=order))
        assert scene.roster.progress()["acme/one"].stage is Stage.COMPLETE, "it has taken all that were asked for"
        scene.want(assignment("acme/one", order=order), told=train(steps=4))
        told = scene.roster.progress()["acme/one"]
        assert (told.stage, told.step, told.steps, told.saved) == (stage, 2, 4, 2)


async def test_a_complete_policy_takes_more_steps_once_it_is_told_to_run(base: Path, tmp_path: Path) -> None:
    undisturbed = await whole(base, tmp_path / "whole", "acme/one", steps=4)
    async with training(base, tmp_path, train(steps=2)) as scene:
        await scene.complete("acme/one")
        scene.want(assignment("acme/one", order=Order.PAUSE), told=train(steps=4))
        await scene.ended("acme/one", stage=Stage.PAUSED)
        await scene.complete("acme/one")
        assert saved(scene, "acme/one") == undisturbed
