"""Routed experts that stay quantised compute as if dequantised when read, in less memory."""

import copy
import itertools
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mint_contracts.errors import MintError, NonFiniteWeights, UnsupportedBase
from mint_contracts.training import Loss
from mint_engine.kernels.library import find_kernels
from mint_engine.model import base as base_module
from mint_engine.model.base import Base
from mint_engine.model.experts import forward, is_stack
from mint_engine.model.modules import find_modules, replace_modules
from mint_engine.model.quantised_experts import QuantisedWeight, every_weight, expert_weights, move
from mint_engine.model.reference import find_reference, load_part
from mint_engine.parallel.part import Part
from mint_engine.preflight import check_small_files
from mint_engine.residency.slots import Slots
from mint_engine.scheduling.scheduler import Limits
from mint_engine.training.example import PolicyBatch
from mint_engine.training.policy import PolicySettings
from mint_engine.training.trainer import Trainer
from tests.engine.families import CPU
from tests.engine.family_answers import check_answers
from tests.engine.quantised import edit_tensors, tensors_of
from tests.engine.quantised_experts import (
    SAVES,
    Save,
    bytes_of,
    in_float8,
    load,
    stacks,
)
from tests.engine.running import ask, running, settings_for
from tests.engine.saved_families import SERVED, save_adapter, save_base
from tests.engine.training.at_once import create, step_all
from tests.engine.training.frontier_families import examples_of
from tests.engine.training.scene import OPTIMIZER, awaken, learn

EVERY = pytest.mark.parametrize("files", SAVES)
FILES_AND_RANKS = [
    ("float8", 1),
    ("float8 by channels", 1),
    ("mxfp4", 1),
    ("mxfp4", 2),
    ("nvfp4 and float8", 2),
    ("numbers", 1),
]
FEW = pytest.mark.parametrize("files", ["float8", "mxfp4", "numbers"])


def last_of(ranks: int) -> Part | None:
    """The part that the last of several ranks reads; None (everything) for one."""
    return Part(ranks - 1, ranks) if ranks > 1 else None


def assert_alike(kept: Base, plain: Base) -> None:
    """Check that kept stacks equal the other base's experts one by one, and that everything else is equal."""
    ours = {name: stack for name, stack in stacks(kept).items() if isinstance(stack, QuantisedWeight)}
    state, theirs = kept.model.state_dict(), plain.model.state_dict()
    assert ours
    assert state.keys() == theirs.keys() - ours.keys()
    for name, stack in ours.items():
        assert stack.shape == theirs[name].shape
        for at, expected in enumerate(theirs[name]):
            assert torch.equal(stack[at], expected), (name, at)
    for name, each in state.items():
        assert torch.equal(each, theirs[name]), name


@EVERY
def test_an_expert_is_what_it_would_be_dequantised(files: str, tmp_path: Path) -> None:
    """Whole, by each rank, and streamed layer by layer by the first of several."""
    quantised, dequantised = SAVES[files][1](tmp_path)
    whole, plain = load(quantised), load(dequantised, keep=False)
    assert_alike(whole, plain)
    plain.model.set_experts_implementation("eager")
    logits = find_reference(plain).logits
    assert torch.equal(find_reference(whole).logits, logits)
    for rank in range(2):
        part = load(dequantised, Part(rank, 2), keep=False)
        assert_alike(load(quantised, Part(rank, 2)), part)
        streamed, found = load_part(quantised, torch.bfloat16, Part(rank, 2), quantised_experts=True)
        assert_alike(streamed, part)
        assert torch.equal(found.logits, logits)


def test_the_first_of_several_ranks_looks_at_each_weight_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads all weights, layer by layer; a second look would take another dequantisation of all experts."""
    quantised, _ = SAVES["numbers"][1](tmp_path)
    whole = {name for name, _ in every_weight(load(quantised).model)}
    seen: list[str] = []
    check = base_module._check_read

    def noting(files: Any, info: Any, weights: Iterable[tuple[str, torch.Tensor]] = ()) -> None:
        check(files, info, map(noted, weights))

    def noted(weight: tuple[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
        seen.append(weight[0])
        return weight

    monkeypatch.setattr(base_module, "_check_read", noting)
    load_part(quantised, torch.bfloat16, Part(0, 2), quantised_experts=True)
    assert sorted(seen) == sorted(whole)


@EVERY
def test_kernels_dequantise_experts_by_themselves(files: str, tmp_path: Path) -> None:
    """Bit for bit as dequantised beforehand; they do not take reordered columns."""
    kernels = find_kernels(torch.bfloat16, CPU)
    if kernels is None:
        pytest.skip("no compiled kernels here")
    held = [
        stack for stack in stacks(load(SAVES[files][1](tmp_path)[0])).values() if isinstance(stack, QuantisedWeight)
    ]
    for stack in held:
        coded = stack.coded()
        assert (coded is None) == (files == "reordered numbers")
        if coded is not None:
            experts, _, inputs = coded.shape
            every = torch.eye(inputs, dtype=torch.bfloat16).repeat(experts, 1)
            bounds = [inputs * at for at in range(experts + 1)]
            found = kernels.multiply_experts(every, coded, bounds).view(experts, inputs, -1)
            expected = torch.stack([stack[at] for at in range(experts)])
            assert torch.equal(found, expected if files == "mxfp4" else expected.mT)


@pytest.mark.parametrize("files", ["float8", "mxfp4", "numbers"])
def test_a_step_by_kernels_is_that_by_torch(files: str, tmp_path: Path) -> None:
    """For experts within transformers' modules, with their biases; equal to bfloat16 rounding."""
    base = load(SAVES[files][1](tmp_path)[0])
    slots = Slots(find_modules(base.model), 2, 16, base.dtype, CPU)
    replace_modules(base.model, slots, None)
    experts: Any = next(module for module in base.model.modules() if is_stack(module))
    if experts.mint_modules.kernels is None:
        pytest.skip("no compiled kernels here")
    draw, hidden = torch.Generator().manual_seed(3), base.model.config.hidden_size
    if experts.has_bias:
        for bias in (experts.gate_up_proj_bias, experts.down_proj_bias):
            bias.data.normal_(generator=draw)
    x = torch.randn(9, hidden, generator=draw).bfloat16()
    chances = torch.rand(9, experts.num_experts, generator=draw)
    weights, routes = chances.topk(2, dim=1)
    with torch.inference_mode():
        ours = forward(experts, x, routes, weights.bfloat16())
        experts.mint_modules = replace(experts.mint_modules, kernels=None)
        theirs = forward(experts, x, routes, weights.bfloat16())
    assert float((ours - theirs).float().norm()) < 1e-2 * float(theirs.float().norm())


@EVERY
def test_experts_take_what_files_do(files: str, tmp_path: Path) -> None:
    quantised, _ = SAVES[files][1](tmp_path)
    base = load(quantised)
    kept = [stack for stack in stacks(base).values() if isinstance(stack, QuantisedWeight)]
    held = bytes_of(kept)
    there = {name: each for name, each in tensors_of(quantised).items() if ".experts." in name}
    plain = {name for name, each in there.items() if name.endswith("weight") and each.dtype == torch.float32}
    beside = ("_bias", "input_scale", "activation_scale")
    assert held == sum(each.nbytes for name, each in there.items() if name not in plain and not name.endswith(beside))


@pytest.mark.parametrize(("files", "ranks"), FILES_AND_RANKS)
async def test_answers_are_pefts(files: str, ranks: int, tmp_path: Path) -> None:
    """For whole numbers on two ranks (Kimi-K2.5) see test_quantised_served."""
    family, save = SAVES[files]
    quantised, dequantised = save(tmp_path)
    await check_answers(family, quantised, dequantised, tmp_path, ranks, quantised_experts=True)


@pytest.mark.parametrize("files", ["float8", "float8 by channels", "numbers"])
async def test_answers_are_those_of_dequantised_experts(files: str, tmp_path: Path) -> None:
    """Bit for bit, with adapters on every expert. gpt-oss is left out: torch multiplies its dequantised experts."""
    family, save = SAVES[files]
    quantised, dequantised = save(tmp_path)
    adapters = {"a/all": save_adapter(dequantised, tmp_path / "all", 4, **SERVED[family])}
    draw = random.Random(5)
    prompts = [[draw.randrange(2, 290) for _ in range(length)] for length in (3, 41)]
    found = []
    for keep in (True, False):
        async with running(quantised, adapters, Limits(running=4, step_tokens=24), quantised_experts=keep) as engine:
            own = family in ("qwen3_moe", "deepseek_v3") and find_kernels(torch.bfloat16, CPU) is not None
            assert engine.server.generation.compute.startswith("lean" if own else "generic")
            for prompt, who in itertools.product(prompts, ("", "a/all")):  # alone: products depend on the batch
                answer = await ask(engine, prompt, who, max_tokens=8, logprobs=0, ignore_eos=True)
                found.append((answer.tokens, answer.logprobs))
    assert found[: len(found) // 2] == found[len(found) // 2 :]


@FEW
def test_policies_learn_the_same(files: str, tmp_path: Path) -> None:
    """Two steps of three policies with adapters on every expert, equal bit for bit."""
    quantised, _ = SAVES[files][1](tmp_path)
    found = []
    for keep in (True, False):
        base = load(quantised, keep=keep)
        trainer = Trainer(base, find_modules(base.model), max_rank=16, lean=False)
        names = [f"p/{number}" for number in range(3)]
        for number, name in enumerate(names):
            create(trainer, name, PolicySettings(2 + number, 4.0, (), number))
            awaken(trainer, name, seed=number)
        for turn in range(2):
            loss = Loss(type="importance_sampling", ratio_low=0.0, ratio_high=0.0)
            learn(trainer, [PolicyBatch(name, examples_of(int(name[-1]), turn), loss) for name in names])
            step_all(trainer, dict.fromkeys(names, OPTIMIZER))
        found.append([trainer.policy(name).weights for name in names])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


@EVERY
def test_experts_of_a_step_are_dequantised_some_at_a_time(
    files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether neighbours or not; one buffer serves serving and training in turn, unless gradients may need it."""
    held = [
        stack for stack in stacks(load(SAVES[files][1](tmp_path)[0])).values() if isinstance(stack, QuantisedWeight)
    ]
    most = 3 * held[0].shape[1] * held[0].shape[2]
    monkeypatch.setattr("mint_engine.model.quantised_experts._AT_ONCE", most)
    for stack, way in itertools.product(held, (torch.inference_mode, torch.no_grad)):
        last = stack.shape[0] - 1
        with way():
            for chosen in ([0], [1, 2], [0, last], list(range(last + 1))):
                found = [(some, weights.data_ptr(), weights.clone()) for some, weights in stack.groups(chosen)]
                assert len({place for _, place, _ in found}) == 1
                assert [at for some, *_ in found for at in some] == chosen
                for some, _, weights in found:
                    assert len(some) * stack.shape[1] * stack.shape[2] <= most
                    assert all(torch.equal(each, stack[at]) for at, each in zip(some, weights, strict=True))
    every = list(held[0].groups(range(held[0].shape[0])))
    assert all(torch.equal(weights[0], held[0][some[0]]) for some, weights in every)


def test_a_stack_that_is_quantised_in_several_ways_is_dequantised(tmp_path: Path) -> None:
    """Its experts cannot be held as one stack: here one has scales of another type with the same values."""
    quantised, dequantised = SAVES["numbers"][1](tmp_path)
    name = "model.layers.1.mlp.experts.5.up_proj.weight_scale"
    edit_tensors(quantised, {name: tensors_of(quantised)[name].float()})
    found, plain = (stacks(load(folder, keep=keep)) for folder, keep in ((quantised, True), (dequantised, False)))
    apart = [stack for stack, each in found.items() if not isinstance(each, QuantisedWeight)]
    assert apart == ["model.layers.1.mlp.experts.gate_up_proj"]
    assert torch.equal(found[apart[0]], plain[apart[0]])


def test_a_copy_of_the_modules_shares_its_experts(tmp_path: Path) -> None:
    """As training copies the model that serves."""
    base = load(SAVES["float8"][1](tmp_path)[0])
    ours, theirs = stacks(base), copy.deepcopy(base.model)
    assert all(
        theirs.get_submodule(path.rpartition(".")[0]).down_proj is each
        for path, each in ours.items()
        if path.endswith("down_proj")
    )


@EVERY
def test_experts_are_dequantised_where_they_are(files: str, tmp_path: Path) -> None:
    """Nothing may be computed off a device that has its own memory; a fake device is enough to check that."""
    base = load(SAVES[files][1](tmp_path)[0])
    with FakeTensorMode(allow_non_fake_inputs=True):
        move(base.model, torch.device("cuda"))
        for name, weight in expert_weights(base.model):
            assert weight.device.type == "cuda", name
            assert weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("save", "says"),
    [
        (lambda folder: (save_base("qwen3_moe", folder / "plain"),) * 2, "plain has no quantised routed experts"),
        (in_float8("qwen3"), "quantised has no quantised routed experts"),
    ],
    ids=["in two bytes", "without experts"],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_base_without_any_is_told_to_leave_it_out(save: Save, says: str, ranks: int, tmp_path: Path) -> None:
    folder, _ = save(tmp_path)
    with pytest.raises(UnsupportedBase, match=f"quantisedExperts: is true, but .*{says}; leave it out"):
        load(folder, last_of(ranks))
    with pytest.raises(
        UnsupportedBase, match="quantisedExperts: is true, but base x/y has no quantised routed experts"
    ):
        check_small_files(settings_for(folder, quantised_experts=True), folder, "base x/y")


UP = "model.layers.1.mlp.experts.5.up_proj.weight"
GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("files", "changes", "error", "says"),
    [
        ("float8", {f"{UP}_scale_inv": lambda each: each * torch.nan}, NonFiniteWeights, "gate_up_proj of expert"),
        ("mxfp4", {f"{GATE_UP}_scales": lambda each: each | 255}, NonFiniteWeights, "gate_up_proj of expert"),
        ("float8", {UP: lambda _: None, f"{UP}_scale_inv": lambda _: None}, UnsupportedBase, "gate_up_proj: has"),
        (
            "mxfp4",
            {f"{GATE_UP}_{end}": lambda each: each[:, :32].clone() for end in ("blocks", "scales")},
            UnsupportedBase,
            r"gate_up_proj: has \d experts of \[64, 32\]",
        ),
    ],
)
def test_unknown_weights_are_named(
    files: str, changes: dict[str, Any], error: type[MintError], says: str, ranks: int, tmp_path: Path
) -> None:
    """NaN or infinite numbers, an expert without one of its linears, and shapes that only agree with each other."""
    quantised, _ = SAVES[files][1](tmp_path)
    held = tensors_of(quantised)
    edit_tensors(quantised, {name: change(held[name]) for name, change in changes.items()})
    with pytest.raises(error, match=says):
        load(quantised, last_of(ranks))


@pytest.mark.parametrize("ranks", [1, 2])
def test_layers_that_the_model_does_not_have_are_not_read(ranks: int, tmp_path: Path) -> None:
    """DeepSeek-V3's files have one more layer, which predicts several tokens."""
    quantised, _ = SAVES["float8"][1](tmp_path)
    edit_tensors(
        quantised,
        {
            f"model.layers.3.{name[15:]}": each.clone()
            for name, each in tensors_of(quantised).items()
            if name.startswith("model.layers.2.")
        },
    )
    found = stacks(load(quantised, last_of(ranks)))
    assert {name.split(".")[2] for name in found} == {"1", "2"}
