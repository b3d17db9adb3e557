"""Engines on a GPU, by a stand-in that knows of a device's memory (see `device_double`), not of its numbers or speed.

No tensor of theirs is in the wrong memory: what they answer and learn is what the same modules do on the CPU. And
steps wait for the device a few times each, however many layers a base has.
"""

import asyncio
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from structlog.testing import capture_logs

from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source
from mint_engine.gpu import attend, lora
from mint_engine.gpu.find import find_gpu_kernels
from mint_engine.gpu.kernels import GpuKernels
from mint_engine.model import experts
from mint_engine.model.base import load_base
from mint_engine.model.device import HOST, lists_on
from mint_engine.model.expert_lora import ExpertRows, plan_experts
from mint_engine.model.lora import LONG_SEGMENT, Segment
from mint_engine.model.modules import find_modules, replace_modules
from mint_engine.parallel.member import lay_member
from mint_engine.parallel.part import Part
from mint_engine.residency.slots import NO_SLOT
from mint_engine.scheduling.scheduler import Limits
from mint_engine.training.example import PolicyBatch
from mint_engine.training.policy import PolicySettings
from mint_engine.training.trainer import Trainer
from tests.engine.device_double import CUDA, Noted, Seen, Silent, standing_in
from tests.engine.in_process import Engine, engine_of
from tests.engine.parallel.playing import draw_adapter
from tests.engine.quantised import LAYOUTS, save_float8
from tests.engine.running import Answer, Running, ask, running, settings_for
from tests.engine.running import save_adapter as save_llama_adapter
from tests.engine.running import save_base as save_llama
from tests.engine.saved_families import SERVED, save_adapter, save_base
from tests.engine.training.at_once import create
from tests.engine.training.scene import groups
from tests.engine.training.training_engine import assignment, saved, train, training
from tests.waiting import until

NEW_TOKENS = 4
WAYS: list[dict[str, Any]] = [
    {},
    {"logprobs": 3},
    {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 3},
    {"temperature": 0.7, "top_p": 0.5, "seed": 4, "repetition_penalty": 1.2, "logit_bias": {9: 1.5}},
    {"frequency_penalty": 0.5, "presence_penalty": 0.5},
]
GRAMMAR = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'


@pytest.fixture(autouse=True)
def _by_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU too: own kernels add up in another order."""
    for name, module in sys.modules.items():
        if name.startswith("mint_engine."):
            for finder in ("find_kernels", "find_training_kernels"):
                if hasattr(module, finder):
                    monkeypatch.setattr(module, finder, lambda *_: None)


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted programs take a millisecond each: let one take many rows."""
    monkeypatch.setattr("mint_engine.gpu.lora.FEW", 1)


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without kernels for GPUs, which tests have to interpret."""
    monkeypatch.setattr("mint_engine.model.generic.find_gpu_kernels", lambda *_, **__: None)


@pytest.fixture
def device() -> Iterator[Seen]:
    with standing_in() as seen:
        yield seen


def save(name: str, folder: Path) -> tuple[Path, dict[str, Path]]:
    """A base, and adapters of several ranks: two on all that may have one, one on a few."""
    base, told = save_base(name, folder / "base"), SERVED[name]
    few = {"target_modules": told["target_modules"][:2]}
    ranks = {"a": (4, told), "b": (6, told), "c": (3, few)}
    return base, {who: save_adapter(base, folder / who, rank, **each) for who, (rank, each) in ranks.items()}


async def answers(base: Path, adapters: dict[str, Path], **settings: Any) -> list[Answer]:
    """Of requests of all kinds in one batch, twice over, so that the second find their prefixes."""
    draw, found = random.Random(5), list[Answer]()
    prompts = [[draw.randrange(2, 290) for _ in range(length)] for length in (3, 41)]
    asked = [(prompt, who) for prompt in prompts for who in ("", *adapters)]
    async with running(base, adapters, **settings) as engine:
        for _ in range(2):
            told = [
                ask(engine, prompt, who, max_tokens=NEW_TOKENS, ignore_eos=True, **WAYS[at % len(WAYS)])
                for at, (prompt, who) in enumerate(asked)
            ]
            found += await asyncio.gather(*told)
        found.append(await ask(engine, prompts[0], "a", max_tokens=8, json_schema=GRAMMAR))
    return found


def check(found: list[Answer], expected: list[Answer]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("name", ["gemma3", "qwen3_moe", "gpt_oss", "deepseek_v32"])
async def test_answers_are_those_of_the_cpu(name: str, tmp_path: Path) -> None:
    base, adapters = save(name, tmp_path)
    expected = await answers(base, adapters)
    with standing_in():
        check(await answers(base, adapters, device="cuda"), expected)


class Refused:
    """A kernel that this device cannot launch with what a base gives it."""

    def __getitem__(self, _: Any) -> Any:
        def launch(*_: Any, **__: Any) -> None:
            raise RuntimeError("out of resource: shared memory")

        return launch


@pytest.mark.parametrize(
    ("program", "event"), [(Refused(), "gpu_kernels_unavailable"), (Silent(), "gpu_kernels_differ")]
)
async def test_a_base_that_kernels_fail_on_is_served_by_plain_torch(
    program: object, event: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = save_llama(tmp_path / "base")
    async with running(base) as engine:
        expected = await ask(engine, [3, 4, 5], max_tokens=NEW_TOKENS)
    with standing_in():
        assert find_gpu_kernels(torch.float32, CUDA, latents=False) is not None
        monkeypatch.setattr("mint_engine.gpu.attend.attend", program)
        with capture_logs() as lines:
            async with running(base, device="cuda") as engine:
                found = await ask(engine, [3, 4, 5], max_tokens=NEW_TOKENS)
    check([found], [expected])
    events = {line["event"]: line for line in lines}
    assert event in events
    assert events["pass_chosen"]["compute"] == "generic"


@pytest.mark.parametrize("name", ["gemma3", "qwen3_moe"])
async def test_no_request_waits_for_the_compiler(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All forms of kernels that requests need have been launched before the engine is ready."""
    (base, adapters), forms = save(name, tmp_path), set[tuple[str, Any]]()
    for module, kernel in ((lora, "shrink"), (lora, "expand"), (attend, "attend"), (attend, "combine")):
        monkeypatch.setattr(module, kernel, Noted(getattr(module, kernel), forms))
    monkeypatch.setattr(attend, "SPLIT", 64)
    with standing_in():
        async with running(base, adapters, device="cuda") as engine:
            ready = set(forms)
            long, short = [5 + at % 200 for at in range(70)], [5, 6, 7]
            asked = [(long, ""), (long, "a"), (short, "a"), (short, "b"), (short, "c")]
            await asyncio.gather(*(ask(engine, prompt, who, max_tokens=3) for prompt, who in asked))
            await ask(engine, short, "a", max_tokens=3)
    assert {form for form, _ in ready} == {"shrink", "expand", "attend", "combine"}
    assert forms == ready


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("keep", [False, True])
async def test_answers_over_float8_are_those_of_the_cpu(keep: bool, tmp_path: Path) -> None:
    base, adapters = save("qwen3_moe", tmp_path)
    quantised, _ = save_float8(base, tmp_path, LAYOUTS["compressed_channel"])
    expected = await answers(quantised, adapters, quantised_experts=keep)
    with standing_in():
        check(await answers(quantised, adapters, quantised_experts=keep, device="cuda"), expected)


async def waits(engine: Running, seen: Seen, *requests: dict[str, Any]) -> list[int]:
    """Of each step of these, at whose last step but one all of them decode."""
    generation, found = engine.server.generation, list[int]()
    step = generation.step

    def counted() -> Any:
        before = seen.waits.total()
        outcomes = step()
        found.append(seen.waits.total() - before)
        return outcomes

    generation.step = counted  # type: ignore[method-assign]
    usual: dict[str, Any] = {"max_tokens": 4, "ignore_eos": True, "prompt": [5, 6, 7]}
    await asyncio.gather(*(ask(engine, **(usual | each)) for each in requests))
    generation.step = step  # type: ignore[method-assign]
    return found


async def test_steps_of_a_prompt_do_not_pile_up_on_the_device(device: Seen, tmp_path: Path) -> None:
    """Or those of later requests would wait for all of them."""
    limits = Limits(running=2, step_tokens=16)
    async with running(save_llama(tmp_path / "base"), limits=limits, device="cuda") as engine:
        found = await waits(engine, device, {"prompt": [5 + at for at in range(40)], "max_tokens": 2})
    assert found == [1] * 4, "three chunks, of which only the last gives a token, and another token"


@pytest.mark.parametrize("name", ["gemma3", "qwen3_moe", "gpt_oss", "deepseek_v32"])
async def test_a_step_waits_for_the_device_once_for_its_tokens(name: str, device: Seen, tmp_path: Path) -> None:
    """Whatever adapters there are, in layers of experts too: what a step is told comes from pinned memory.

    A sampled step also asks whether a distribution is flatter than usual, and for what was drawn; one with penalties
    chooses twice.
    """
    base, adapters = save(name, tmp_path)
    async with running(base, adapters, device="cuda") as engine:
        bare: list[dict[str, Any]] = [{}]
        one, three = [{"adapter": "a"}], [{}, {"adapter": "a"}, {"adapter": "b"}]
        for requests in (bare, one, three, [{"adapter": "c"}], bare * 4, one * LONG_SEGMENT):
            assert (await waits(engine, device, *requests))[-2] == 1
        sampled = {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "min_p": 0.01}
        assert (await waits(engine, device, *[sampled] * 4))[-2] == 3
        assert (await waits(engine, device, *[sampled] * 4, *bare))[-2] == 3, "of which some rows are drawn"
        penalised = {"repetition_penalty": 1.2, "frequency_penalty": 0.5, "logit_bias": {9: 1.5}}
        assert (await waits(engine, device, penalised))[-2] == 2
        assert (await waits(engine, device, *[penalised] * 4, *bare))[-2] == 2, "however many are penalised"
        assert (await waits(engine, device, {"logprobs": 0}))[-2] == 2
        assert (await waits(engine, device, *[{"logprobs": 3}] * 4))[-2] == 3, (
            "one for tokens that are equally likely"
        )


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_rank_computes_its_own_experts_without_counting_their_tokens(
    name: str, device: Seen, tmp_path: Path
) -> None:
    """Each layer would wait for that; what the rank adds up is the same."""
    base, draw, found = save_base(name, tmp_path / "base"), torch.Generator().manual_seed(8), list[torch.Tensor]()
    weights, routes = torch.randn(9, 6, generator=draw).topk(2)  # of six experts; the rank holds three
    for where in (HOST, CUDA):
        part = Part(1, 2, device=where)
        loaded = load_base(base, torch.float32, HOST, part)
        member = lay_member(settings_for(base, tensor_parallel_size=2), loaded, part, where)
        member.slots.load(1, draw_adapter(member.slots, 4))
        current = replace_modules(member.base.model, member.slots, member.share.experts)
        owners = [NO_SLOT] * 3 + [1] * 6
        current.expert_rows = plan_experts([Segment(3, 6, 1)], 9, member.slots, None)
        if where == CUDA:
            current.expert_rows = ExpertRows(lists_on(CUDA, owners)[0], None, (), member.slots, None, GpuKernels())
        hidden = torch.ones(9, int(loaded.config.hidden_size)).cumsum(1).sin()
        stack = next(each for each in member.base.model.modules() if experts.is_stack(each))
        device.forget()
        with torch.inference_mode():
            found.append(experts.forward(stack, *(each.to(where) for each in (hidden, routes, weights))).cpu())
    assert device.waits == {"a copy to the device": 3, "numbers": 1}, "what the test itself copies"
    assert found[0].any()
    assert torch.allclose(found[0], found[1], atol=1e-5)


def tier_of(engine: Engine, adapter: str) -> Tier | None:
    held = engine.residency.report().get(adapter)
    return held.tier if held is not None else None


async def test_adapters_come_to_slots_by_way_of_pinned_memory(device: Seen, tmp_path: Path) -> None:
    """The host waits once for each; what serves meanwhile waits for none."""
    base = save_llama(tmp_path / "base")
    folders = [save_llama_adapter(base, tmp_path / str(rank), rank=rank) for rank in (4, 16)]
    options: dict[str, Any] = {
        "slots": 1,
        "max_rank": 16,
        "store": None,
        "host": 1 << 22,
        "disk": 1 << 22,
        "device": "cuda",
    }
    async with engine_of(base, tmp_path, **options) as engine:
        device.forget()
        sources = [Source(f"file://{folder}") for folder in folders]
        engine.residency.want([Assignment("a", sources[0], Tier.DEVICE), Assignment("b", sources[1], Tier.HOST)])
        await until(lambda: (tier_of(engine, "a"), tier_of(engine, "b")) == (Tier.DEVICE, Tier.HOST))
        assert device.copies == {"pinned": 2}, "its weights, and where they lie"
        assert device.waits == {"a stream": 1}
        assert engine.slots.memory.device == CUDA


async def learnt(base: Path, folder: Path, device: str) -> tuple[tuple[float, ...], torch.Tensor]:
    """Of a course with rollouts and revisions, that goes on from a checkpoint on another engine: rewards, weights."""
    options: dict[str, Any] = {"device": device, "device_slots": 4}
    async with training(base, folder, train(steps=2, publish_every_steps=1), **options) as scene:
        scene.want(assignment("acme/one"), assignment("acme/two", rank=8))
        await scene.ended("acme/one", "acme/two")
    async with training(base, folder, train(steps=3, publish_every_steps=1), **options) as scene:
        published = (await scene.complete("acme/one", lease=2)).published
        rewards, state = saved(scene, "acme/one")
    assert published is not None
    assert published.step == 3
    return rewards, load(bytes(state))["weights"]


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
async def test_policies_learn_what_they_do_on_the_cpu(name: str, tmp_path: Path) -> None:
    """But for how the norm of a gradient is rounded, which is added up in other parts."""
    base = save_llama(tmp_path / "base") if name == "llama" else save_base(name, tmp_path / "base")
    rewards, weights = await learnt(base, tmp_path / "cpu", "cpu")
    with standing_in():
        found = await learnt(base, tmp_path / "cuda", "cuda")
    assert found[0] == rewards
    assert (found[1] - weights).norm() < 1e-3 * weights.norm()


def test_each_part_of_an_update_has_ended_before_requests_have_their_next_step(device: Seen, tmp_path: Path) -> None:
    """Or parts would pile up on the device, in time that nobody counts as theirs."""
    base = load_base(save_llama(tmp_path / "base"), torch.float32, CUDA)
    trainer = Trainer(base, find_modules(base.model), max_rank=8)
    create(trainer, "p", PolicySettings(rank=4))
    work = trainer.begin([PolicyBatch("p", groups(1))])
    while not work.done:
        device.forget()
        work.advance()
        assert device.waits["a stream"] == 1


def test_what_cuda_refuses_is_refused(device: Seen) -> None:
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    with pytest.raises(RuntimeError, match="on the same device"):
        there + here
    with pytest.raises(RuntimeError, match="on the same device"):
        here.add_(there)
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        there.numpy()
    with pytest.raises(RuntimeError, match="address"):
        there.data_ptr()
    assert not device.waits
    assert (there * torch.tensor(2.0)).device == CUDA
    assert there.sum().item() == 3.0
    assert there.to("cuda") is there
    into = torch.zeros(3, device="cuda")
    into.copy_(here.pin_memory(), non_blocking=True)
    assert device.waits == {"a number": 1}
    into.copy_(here)
    assert device.waits == {"a number": 1, "a copy to the device": 1}
    assert device.copies == {"pinned": 1, "pageable": 1}
