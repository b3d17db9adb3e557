"""Our side of training waves: one engine in this process, whose policies take complete steps, together or in turn.

python -m tests.bench.our_waves '{"base": ..., "slots": ...}'      (JSON of Setup)
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from prometheus_client import REGISTRY

from mint_contracts.awaiting import end_tasks
from mint_contracts.source import Source
from mint_contracts.training import Dataset, Length, Optimizer, Policies, Reward, Train, TrainSampling
from mint_engine.adapters.packed import Packed
from mint_engine.background_threads import disable_thread_teams
from mint_engine.build import build
from mint_engine.examples.ending import ends_of
from mint_engine.examples.example import Example
from mint_engine.examples.render import Renderer
from mint_engine.model.base import Base
from mint_engine.model.experts import is_stack
from mint_engine.model.modules import LoraLinear
from mint_engine.policies.courses.handoff import hand_off, label_of
from mint_engine.policies.courses.lessons import Lessons, Taken
from mint_engine.policies.courses.terms import Terms
from mint_engine.policies.halt import Halt
from mint_engine.policies.rollouts import Rollouts
from mint_engine.policies.training_context import TrainingContext
from mint_engine.policies.updates.step_thread import StepThread
from mint_engine.policies.updates.updates import Updates
from mint_engine.requests.events import Done, Event, Failed, Tokens
from mint_engine.requests.parameters import Sampling
from mint_engine.residency.host import HostTier
from mint_engine.residency.policy_memory import PolicyMemory
from mint_engine.residency.slots import Slots
from mint_engine.rewards.scorer import Scorer
from mint_engine.scheduling.request import Request
from mint_engine.scheduling.stepper import Stepper
from mint_engine.training.policy import PolicySettings
from mint_engine.training.trainer import Trainer
from tests.bench.our_setup import Setup
from tests.bench.our_side import serve
from tests.bench.prompts import GROUP, PROMPTS, RANK, TARGET, texts
from tests.bench.protocol import Answer
from tests.engine.training.at_once import create, step_all

TENANTS = 16
_PEAK_SIZE, _PEAK_TRIES = 2048, 8

T = TypeVar("T")


class _NoResidency:
    """Slots are given by number here; nothing is published."""

    def __init__(self, host_bytes: int) -> None:
        self.room = PolicyMemory(HostTier(host_bytes), lambda _: None)

    async def reserve(self, adapter: str) -> int:
        raise NotImplementedError(adapter)

    async def release(self, slot: int) -> None:
        raise NotImplementedError(slot)

    async def read(self, adapter: str) -> Packed:
        raise NotImplementedError(adapter)

    def offer(self, adapter: str, source: Source, packed: Packed) -> None:
        raise NotImplementedError(adapter)

    def withdraw(self, adapter: str) -> None:
        raise NotImplementedError(adapter)


class Engine:
    """The engine with its policies; each public method is one command (see `tests.bench.side`)."""

    def __init__(self, setup: Setup) -> None:
        loop, trainers = asyncio.get_running_loop(), list[Trainer]()

        def equip(base: Base, slots: Slots, _: object) -> None:
            trainers.append(Trainer(base, slots.modules, setup.max_rank))

        base, self._slots, generation = build(setup.settings, Path(setup.base), equip=equip)
        disable_thread_teams()
        updates = Updates(trainers[0])

        def post(deliver: Callable[[], None]) -> None:
            loop.call_soon_threadsafe(deliver)

        self.stepper = Stepper(generation, post, updates)
        rollouts = Rollouts(self.stepper, generation.scheduler.limits.running, on_idle=self.stepper.wake)
        updates.rollouts = lambda: rollouts.in_flight
        renderer = Renderer(
            base.tokenizer, base.vocab_size, setup.context, ends_of(base.tokenizer, base.end, base.eos)
        )
        step_thread = StepThread(updates, self.stepper.wake)
        self._context = TrainingContext(
            step_thread, rollouts, self._slots, _NoResidency(setup.host_bytes), renderer, _nobody
        )
        self._steps: dict[str, int] = {}
        self._lessons: list[Lessons] = []
        self._base = base
        self._vocabulary = base.vocab_size
        self.stepper.start()

    async def step(self, policies: int, tokens: int, *, together: bool, prompts: int = PROMPTS) -> Answer:
        """Take one step of the first `policies`, at once or one after another; return the total seconds."""
        while len(self._lessons) < policies:
            self._lessons.append(await self._begin(len(self._lessons), tokens, prompts))
        chosen, began = self._lessons[:policies], time.perf_counter()
        if together:
            taken = await asyncio.gather(*map(self._take, chosen))
        else:
            taken = [await self._take(each) for each in chosen]
        seconds = time.perf_counter() - began
        learnt = sum(each.tokens for each in taken)
        return {"seconds": seconds, "tokens": learnt, "learnt": sum(each.learnt is not None for each in taken)}

    async def roof(self, policies: int, tokens: int) -> Answer:
        """Return the seconds of a step's products with the base's weights at the device's peak; ignores prompts."""
        weights = weights_of_a_token(self._base)
        # Two operations per weight and token forward; an update runs forward and, with frozen weights, once backward.
        operations = (2 + 4) * weights * policies * PROMPTS * GROUP * tokens
        return {"seconds": operations / peak_rate(self._base.device)}

    async def hand_over(self, number: int) -> Answer:
        """Time from an update's end to a rollout's first token on the new weights, a decode step, and a memcpy.

        The prompt is one token, so that its step is as long as a decode step.
        """
        lessons = self._lessons[0]
        name, prompt = lessons.terms.policy, (100 + number,)
        begun: list[float] = []

        def give(trainer: Trainer) -> None:
            policy = trainer.policy(name)
            policy.gradient, policy.normaliser = policy.weights * 1e-3, 1.0
            step_all(trainer, {name: Optimizer()})
            begun.append(time.perf_counter())
            hand_off(self._slots, lessons.slot, policy, f"{name}@9.{number}")

        await self._context.step_thread.call(give)
        first, step = await self._first(name, f"{name}@9.{number}", lessons.slot, prompt)

        def copy(trainer: Trainer) -> float:
            run = trainer.policy(name).weights.to("cpu", self._slots.dtype)
            into = run.clone()
            started = time.perf_counter()
            into.copy_(run)
            return time.perf_counter() - started

        memcpy = await self._context.step_thread.call(copy)
        return {"first": first - begun[0], "step": step, "memcpy": memcpy}

    async def tenants(self, *, train: int, tokens: int, seconds: float) -> Answer:
        """Return the token gaps of tenants' requests to the bare base while `train` policies train continuously."""
        until, before = time.monotonic() + seconds, _updating_s()
        training = [asyncio.create_task(self._over_and_over(each)) for each in self._lessons[:train]]
        try:
            gaps = await asyncio.gather(*[self._streams(number, tokens, until) for number in range(TENANTS)])
        finally:
            await end_tasks(training)
        return {"gaps": [gap for each in gaps for gap in each], "updating": _updating_s() - before}

    async def _begin(self, number: int, tokens: int, prompts: int) -> Lessons:
        name = f"bench/p{number}"
        told = Train(
            Policies(count=1), group_size=GROUP, prompts_per_step=prompts, sampling=TrainSampling(max_tokens=tokens),
            steps=1000,
        )  # fmt: skip
        reward = Reward(length=Length(target=TARGET, tolerance=TARGET))
        terms = Terms(
            policy=name, wave="bench/wave", run="", lease=1, saved=0, train=told,
            form=PolicySettings(RANK, 16.0, (), number), start_from="", dataset=Dataset(), reward=reward,
            optimizer=Optimizer(), loss=told.loss,
            sampling=Sampling(max_tokens=tokens, seed=0, temperature=1.0, logprobs=0, ignore_eos=True),
        )  # fmt: skip
        examples = [Example(text, None, "{}") for text in texts(number)]
        await self._context.step_thread.call(lambda trainer: create(trainer, name, terms.form))
        label = label_of(name, 1, 0)
        await self._context.step_thread.call(
            lambda trainer: hand_off(self._slots, number, trainer.policy(name), label)
        )
        return Lessons(self._context, terms, number, examples, (), Scorer(reward), _once, Halt(lambda: False))

    async def _take(self, lessons: Lessons) -> Taken:
        name = lessons.terms.policy
        step = self._steps.get(name, 0)
        steps = lessons.terms.train.steps
        taken = await lessons.take(step, steps, label_of(name, 1, step), label_of(name, 1, step + 1))
        self._steps[name] = step + 1
        return taken

    async def _over_and_over(self, lessons: Lessons) -> None:
        while True:
            await self._take(lessons)

    async def _streams(self, number: int, tokens: int, until: float) -> list[float]:
        gaps: list[float] = []
        while time.monotonic() < until:
            gaps += await self._stream(number, tokens)
        return gaps

    async def _stream(self, number: int, tokens: int) -> list[float]:
        chance = random.Random(number)
        prompt = tuple(chance.choices(range(100, self._vocabulary), k=32))
        times: list[float] = []
        await self._run(Request(prompt, Sampling(tokens, 0, ignore_eos=True)), times)
        return [later - earlier for earlier, later in itertools.pairwise(times[1:])]

    async def _first(self, name: str, label: str, slot: int, prompt: Sequence[int]) -> tuple[float, float]:
        """Return the time of a rollout's first token, and the seconds to its second, which is one decode step."""
        times: list[float] = []
        await self._run(Request(tuple(prompt), Sampling(3, 0, ignore_eos=True), name, label, slot), times)
        return times[0], times[1] - times[0]

    async def _run(self, request: Request, times: list[float]) -> None:
        ended = asyncio.Event()

        def sink(event: Event) -> None:
            if isinstance(event, Tokens):
                times.append(time.perf_counter())
            elif isinstance(event, Done | Failed):
                ended.set()

        self.stepper.submit(request, sink)
        await ended.wait()


async def _nobody(_policy: str, _since: float) -> None:
    """Do nothing: no policies are trained by calls here."""


async def _once(work: Callable[[], Awaitable[T]], _what: str) -> T:
    """Run without retries: nothing here can be unavailable."""
    return await work()


def _updating_s() -> float:
    """Return the seconds that this process has spent on updates."""
    return REGISTRY.get_sample_value("mint_train_piece_seconds_sum") or 0.0


def weights_of_a_token(base: Base) -> int:
    """Return the number of linear weights used per token; of experts only those that a token goes to."""
    total = 0
    for each in base.model.modules():
        if isinstance(each, torch.nn.Linear | LoraLinear):
            total += each.in_features * each.out_features
        elif is_stack(each):
            experts: Any = each
            whole = experts.gate_up_proj.numel() + experts.down_proj.numel()
            total += whole * int(base.config.num_experts_per_tok) // int(experts.num_experts)
    return total


def peak_rate(device: torch.device) -> float:
    """Return the operations per second of a large product in bfloat16, the best of several."""
    left, right = (torch.randn(_PEAK_SIZE, _PEAK_SIZE, dtype=torch.bfloat16, device=device) for _ in range(2))
    seconds = []
    for _ in range(_PEAK_TRIES):
        began = time.perf_counter()
        float((left @ right)[0, 0])  # waits for an asynchronous device
        seconds.append(time.perf_counter() - began)
    return 2 * _PEAK_SIZE**3 / min(seconds)


if __name__ == "__main__":
    serve(Engine)
