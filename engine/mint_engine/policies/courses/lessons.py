"""One step of a policy: draw prompts, answer them, score the answers, learn. Also its evaluation by greedy answers.

All inputs of a step follow from its number and the policy's weights, so an interrupted step can be taken again with
the same outcome.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import fmean

import msgspec

from mint_contracts.awaiting import gather_or_cancel
from mint_contracts.errors import Internal
from mint_engine.examples.draw import draw, rollout_seed
from mint_engine.examples.example import Example
from mint_engine.policies import training_metrics as metrics
from mint_engine.policies.courses.beginning import holder_of
from mint_engine.policies.courses.groups import Group, batch_of, figures_of, supervised
from mint_engine.policies.courses.handoff import hand_off
from mint_engine.policies.courses.terms import Terms
from mint_engine.policies.halt import Halt
from mint_engine.policies.patience import Patiently
from mint_engine.policies.rollouts import Ask, Rollout
from mint_engine.policies.training_context import TrainingContext
from mint_engine.policies.updates.updates import Learnt
from mint_engine.rewards.completion import Completion
from mint_engine.rewards.scorer import Scorer
from mint_engine.training.example import PolicyBatch
from mint_engine.training.pieces import longest_of
from mint_engine.training.schedule import with_rate

# Log of the smallest positive float32: reported in place of a loss that is not finite.
LEAST_LOGPROB = math.log(2**-149)
GRACE_S = 1.0  # that a reward may still take after an order to stop, so that its step counts


def _timed(phase: str) -> AbstractContextManager[object]:
    """Return a context that measures one phase of a step."""
    return metrics.SECONDS.labels(phase).time()


def _untimed(_: str) -> AbstractContextManager[object]:
    """As `_timed`, but measure nothing: an evaluation is timed as a whole, apart from steps."""
    return nullcontext()


@dataclass(frozen=True)
class Taken:
    """A step's outcome. In supervised training, the reward is the mean log-probability of the answers' tokens.

    It is always finite, since checkpoints hold it in JSON, which has no other numbers.
    """

    reward: float
    tokens: int  # prompt and completion tokens that were learnt from
    learnt: Learnt | None  # None: no group had a signal, and the weights are unchanged
    rollouts: Mapping[str, float]  # see `figures_of`; empty in supervised training

    @property
    def figures(self) -> dict[str, float]:
        """Numbers for a log line: of completions; and of an update `LossOutcome.metrics` and the gradient's norm."""
        found = dict(self.rollouts)
        if self.learnt is not None:
            found |= self.learnt.outcome.metrics
            if self.learnt.step is not None:
                found["grad_norm"] = self.learnt.step.grad_norm
        return {name: float(f"{value:.4g}") for name, value in found.items()}


@dataclass(frozen=True)
class Lessons:
    """A policy in its slot, its examples, and what scores its answers."""

    context: TrainingContext
    terms: Terms
    slot: int
    examples: Sequence[Example]
    held_out: Sequence[Example]  # for evaluations
    scorer: Scorer | None
    patiently: Patiently
    halt: Halt

    async def take(self, step: int, steps: int, label: str, next_label: str) -> Taken:
        """Take step `step` of `steps`, from 0. `label` names what the slot holds now, `next_label` what it will hold.

        Raises Halted if an order to stop comes while it waits for completions, rewards or memory: nothing is learnt.
        """
        if self.terms.supervised:
            return await self._study(step, steps, next_label)
        train, began = self.terms.train, time.monotonic()
        examples = await asyncio.to_thread(self._drawn, step)
        seeds = [
            tuple(rollout_seed(self.terms.form.seed, step, prompt, place) for place in range(train.group_size))
            for prompt in range(len(examples))
        ]
        groups = await self._answer(examples, seeds, step, label, temperature=self.terms.sampling.temperature)
        reward = fmean(value for group in groups for value in group.rewards)
        metrics.REWARD.observe(reward)
        figures = figures_of(groups)
        batch = batch_of(self.terms.policy, groups, self.terms.loss, self.terms.sampling)
        if batch is None:
            metrics.SKIPPED.labels("no signal").inc()
            return Taken(reward, 0, None, figures)
        learnt = await self._learn(batch, step, steps, next_label, time.monotonic() - began)
        drift = learnt.outcome.metrics["drift"]
        if math.isfinite(drift):  # otherwise the metric's sum over all policies would never be finite again
            metrics.DRIFT.observe(drift)
        metrics.BEYOND.observe(1 - learnt.outcome.metrics["kept"])
        tokens = sum(len(each.tokens) + 1 for each in batch.examples if any(each.weights))
        return Taken(reward, tokens, learnt, figures)

    async def evaluate(self, step: int, label: str) -> float:
        """Return the mean reward of one greedy answer to each held-out example. Raises Halted."""
        examples = await asyncio.to_thread(list, self.held_out)
        groups = await self._answer(examples, [(0,)] * len(examples), step, label, temperature=0.0, phase=_untimed)
        return fmean(group.rewards[0] for group in groups)

    async def _study(self, step: int, steps: int, next_label: str) -> Taken:
        render, most = self.context.renderer, self.terms.train.sampling.max_tokens
        pairs = await asyncio.to_thread(
            lambda: [(render.prompt(each, most), render.answer(each, most)) for each in self._drawn(step)]
        )
        batch = supervised(self.terms.policy, pairs, self.terms.loss)
        learnt = await self._learn(batch, step, steps, next_label)
        logprob = -learnt.outcome.loss_sum
        reward = logprob if math.isfinite(logprob) else LEAST_LOGPROB
        return Taken(reward, sum(len(p) + len(a) for p, a in pairs), learnt, {})

    async def _answer(
        self,
        examples: Sequence[Example],
        seeds: Sequence[tuple[int, ...]],
        step: int,
        label: str,
        *,
        temperature: float,
        phase: Callable[[str], AbstractContextManager[object]] = _timed,
    ) -> list[Group]:
        """Return a scored group of completions for each example."""
        terms, render = self.terms, self.context.renderer
        sampling = msgspec.structs.replace(terms.sampling, temperature=temperature)

        def ask(example: Example, own: tuple[int, ...]) -> Ask:
            prompt = render.prompt(example, sampling.max_tokens)
            thought, routes = render.thought(example, prompt), terms.train.replay_routes
            return Ask(terms.policy, label, self.slot, prompt, sampling, own, routes, thought)

        asks = await asyncio.to_thread(lambda: [ask(*each) for each in zip(examples, seeds, strict=True)])
        with phase("rollout"):
            answers = await gather_or_cancel(self._rollouts(place, each) for place, each in enumerate(asks))
        with phase("reward"):
            rewards = iter(await self._score(examples, [[r.text for r in group] for group in answers], step))
        return [
            Group(each.prompt, group, [next(rewards) for _ in group])
            for each, group in zip(asks, answers, strict=True)
        ]

    async def _rollouts(self, place: int, ask: Ask) -> list[Rollout]:
        """Complete one prompt. Each is retried by itself: a full engine seldom has room for all of them at once.

        A defect that a tenant's request causes fails all rollouts of its step, too: after the first defect, the
        prompt is completed again.
        """
        rollouts, failed = self.context.rollouts, False

        async def group() -> list[Rollout]:
            nonlocal failed
            try:
                return await rollouts.group(ask)
            except Internal:
                if failed:
                    raise
                failed = True
                return await rollouts.group(ask)

        return await self.patiently(group, f"rollout {place}")

    async def _score(self, examples: Sequence[Example], texts: Sequence[Sequence[str]], step: int) -> list[float]:
        scorer = self.scorer
        if scorer is None:
            raise Internal(f"policy {self.terms.policy!r}", "has no reward to score its answers with")
        completions = [
            Completion(example.text, text, example.answer, example.json)
            for example, group in zip(examples, texts, strict=True)
            for text in group
        ]

        async def score() -> list[float]:
            async with self.halt.within(GRACE_S):
                return await scorer.score(self.terms.policy, step, completions, self.patiently)

        return await self.patiently(score, "reward")

    async def _learn(
        self, batch: PolicyBatch, step: int, steps: int, next_label: str, taken_s: float = 0.0
    ) -> Learnt:
        terms, slots = self.terms, self.context.slots
        room, longest = self.context.residency.room, longest_of(batch)

        async def learn() -> Learnt:
            with room.updating(holder_of(terms.policy), longest):
                return await self.context.step_thread.learn(
                    batch,
                    with_rate(terms.optimizer, step, steps),
                    epochs=terms.train.inner_epochs,
                    finish=lambda trainer: hand_off(slots, self.slot, trainer.policy(terms.policy), next_label),
                    taken_s=taken_s,
                )

        with _timed("update"):
            learnt = await self.patiently(learn, "update")  # by itself, so that completions and rewards are kept
        if learnt.step is not None and learnt.step.skipped:
            metrics.SKIPPED.labels("not finite").inc()
        return learnt

    def _drawn(self, step: int) -> list[Example]:
        """Return the step's examples. Decodes them, which takes time if they are large."""
        places = self.terms.train.prompts_per_step
        return [self.examples[at] for at in draw(len(self.examples), self.terms.draw_seed, step, places)]
