"""What is exported for bases with stacked experts: PEFT itself loads it and answers with our tokens and logprobs."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from mint_contracts import errors
from mint_engine.adapters import packed_file
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.check import Fit
from mint_engine.adapters.export import export
from mint_engine.adapters.packed import Packed, fingerprint, halves, lay_out
from mint_engine.adapters.read import read_adapter
from mint_engine.model.forward import Forward
from mint_engine.sources.fetch import CONFIG, WEIGHTS
from mint_engine.sources.local import LocalFolder
from mint_engine.training.policy import FormLimits, PolicySettings, form_of
from tests.engine.families import ROUTED, make_forward, make_model, span
from tests.engine.saved_families import BASES

PROMPT = list(range(2, 30))
NEW_TOKENS = 12


def trained(modules: Mapping[str, Module], *targets: str) -> Packed:
    """A policy as an engine publishes it, over every module that it may train, with separate A for gate and up."""
    form = form_of(PolicySettings(rank=3, alpha=5, target_modules=targets), modules, FormLimits(8), "policy")
    run = torch.randn(form.layout.elements, generator=torch.Generator().manual_seed(6)) * 0.1
    return Packed(packed_file.describe(form.config, form.base, form.layout, form.scalings, run), run)


def told(modules: Mapping[str, Module], ranks: Mapping[str, int], config: Mapping[str, Any]) -> Packed:
    """An adapter with this config, and with these ranks for modules of the given names."""
    chosen = {path: ranks[module.leaf] for path, module in modules.items() if module.leaf in ranks}
    layout = lay_out(modules, chosen)
    run = torch.randn(layout.elements, generator=torch.Generator().manual_seed(7)) * 0.1
    text = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", **config}).encode()
    return Packed(packed_file.describe(text, fingerprint(modules), layout, (2.0,) * len(layout.places), run), run)


def read(forward: Forward, folder: Path) -> Packed:
    return read_adapter(LocalFolder(folder, "adapter"), Fit(forward.slots.modules, 16), torch.float32)


def greedy(forward: Forward, packed: Packed) -> tuple[list[int], torch.Tensor]:
    """Generate token by token over pages; return prompt and answer, and the logits [T, V] before each next token."""
    forward.slots.load(1, packed)
    prompt = span(forward.cache, 0, len(PROMPT), 0, [1, 2, 3], 1)
    logits = forward.run(PROMPT, [prompt], range(len(PROMPT))).to(torch.float32, copy=True)
    said = [*PROMPT, int(logits[-1].argmax())]
    for _ in range(NEW_TOKENS - 1):
        last = span(forward.cache, 0, 1, len(said) - 1, [1, 2, 3], 1)
        row = forward.run(said[-1:], [last], [0]).to(torch.float32, copy=True)
        logits = torch.cat([logits, row])
        said.append(int(row[0].argmax()))
    return said, logits


@torch.no_grad()
def check_by_peft(name: str, forward: Forward, packed: Packed, folder: Path) -> None:
    """Check that PEFT uses every tensor in the files, and that its model's answer equals ours."""
    with warnings.catch_warnings(record=True) as told_of:
        warnings.simplefilter("always")
        peft = PeftModel.from_pretrained(make_model(BASES[name]), str(folder))
    assert not [each for each in told_of if "adapter keys" in str(each.message)]
    assert sum("lora_" in each for each, _ in peft.named_parameters()) == len(load_file(folder / WEIGHTS))
    said, found = greedy(forward, packed)
    expected = peft(input_ids=torch.tensor([said[:-1]]), use_cache=False).logits[0]
    torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1), rtol=0, atol=2e-3)
    assert said[len(PROMPT) :] == expected[len(PROMPT) - 1 :].argmax(-1).tolist()
    bare = make_model(BASES[name])(input_ids=torch.tensor([said[:-1]]), use_cache=False).logits[0]
    assert (found - bare).norm() > 0.05 * bare.norm(), "and the adapter says something"


def deltas(packed: Packed) -> dict[str, torch.Tensor]:
    """What the adapter adds to each weight: [E, out, in]."""
    parts = zip(halves(packed.header.layout, packed.run), packed.header.scalings, strict=True)
    return {place.path: torch.einsum("eri,ero->eoi", a, b) * scaling for (place, a, b), scaling in parts}


@pytest.mark.parametrize("name", [*ROUTED, "mixtral"])
def test_peft_loads_a_policy_that_was_trained_on_everything(name: str, tmp_path: Path) -> None:
    """Attention, routed experts, shared experts, and the dense layers' networks; MinT also reads the export back."""
    forward = make_forward(BASES[name])
    packed = trained(forward.slots.modules)
    export(packed, tmp_path / "out", forward.slots.modules)
    check_by_peft(name, forward, packed, tmp_path / "out")
    again = deltas(read(forward, tmp_path / "out"))
    assert again.keys() == deltas(packed).keys()
    for path, delta in deltas(packed).items():
        torch.testing.assert_close(again[path], delta)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("gpt_oss", ("gate_proj",)),
        ("gpt_oss", ("down_proj", "q_proj")),
        ("deepseek_v3", ("shared_experts.up_proj", "shared_experts.down_proj")),
        ("qwen3_moe", ("up_proj",)),
        ("qwen3_moe", ("o_proj",)),
    ],
)
def test_peft_loads_a_policy_that_was_trained_on_a_part(name: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    """One half of a parameter, one parameter of two, shared experts without routed ones, attention alone."""
    forward = make_forward(BASES[name])
    packed = trained(forward.slots.modules, *targets)
    export(packed, tmp_path / "out", forward.slots.modules)
    check_by_peft(name, forward, packed, tmp_path / "out")
    assert deltas(read(forward, tmp_path / "out")).keys() >= deltas(packed).keys()


def test_a_policy_that_went_on_from_pefts_parameters_has_an_a_for_gate_and_one_for_up(tmp_path: Path) -> None:
    """It keeps the config that it began with, though one shared A cannot hold what it has learnt since."""
    forward = make_forward(BASES["gpt_oss"])
    config = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj"], "lora_dropout": 0.1}
    packed = told(forward.slots.modules, {"q_proj": 2, "gate_proj": 2, "up_proj": 2}, config)
    export(packed, tmp_path / "out", forward.slots.modules)
    check_by_peft("gpt_oss", forward, packed, tmp_path / "out")


def test_ranks_and_layers_that_a_config_gives_by_patterns(tmp_path: Path) -> None:
    """The first pattern that matches counts, in the export and in the revision packed from it."""
    forward = make_forward(BASES["deepseek_v3"])
    modules = {path: each for path, each in forward.slots.modules.items() if ".layers.2." in path}
    config = {
        "target_modules": ["o_proj", "gate_proj", "up_proj", "q_a_proj"],
        "layers_to_transform": [2],
        "rank_pattern": {"up_proj": 4, "o_proj": 3, "experts.*": 1, ".*_proj": 5},
        "alpha_pattern": {"up_proj": 8, "o_proj": 6, "experts.*": 2, ".*_proj": 10},
    }
    ranks = {"o_proj": 3, "up_proj": 4, "gate_proj": 5, "q_a_proj": 5}
    packed = told(modules, ranks, config)
    export(packed, tmp_path / "out", forward.slots.modules)
    check_by_peft("deepseek_v3", forward, packed, tmp_path / "out")
    again = read(forward, tmp_path / "out")
    with (tmp_path / "adapter.mint").open("wb") as file:
        packed_file.write(again, file)
    (tmp_path / "packed").mkdir()
    (tmp_path / "adapter.mint").rename(tmp_path / "packed" / "adapter.mint")
    assert read(forward, tmp_path / "packed").revision == again.revision


def test_gate_and_up_that_are_scaled_differently_no_parameter_of_pefts_can_hold(tmp_path: Path) -> None:
    forward = make_forward(BASES["gpt_oss"])
    packed = trained(forward.slots.modules, "gate_proj", "up_proj")
    header = replace(packed.header, scalings=tuple(range(1, 1 + len(packed.header.scalings))))
    with pytest.raises(errors.UnsupportedAdapter, match=r"experts\.gate_up_proj differently"):
        export(replace(packed, header=header), tmp_path / "out", forward.slots.modules)
    assert not (tmp_path / "out").exists()


def test_another_bases_adapter_is_refused(tmp_path: Path) -> None:
    packed = trained(make_forward(BASES["gpt_oss"]).slots.modules)
    with pytest.raises(errors.UnknownTargetModules, match="the base model offers"):
        export(packed, tmp_path / "out", make_forward(BASES["llama"]).slots.modules)


def test_adapters_of_peft_are_exported_with_their_config(tmp_path: Path) -> None:
    """Parameter names that define what is adapted stay as they are."""
    forward = make_forward(BASES["deepseek_v3"])
    config = {
        "target_modules": ["o_proj"],
        "target_parameters": ["experts.down_proj", "shared_experts.up_proj.weight"],
    }
    modules = {
        path: each
        for path, each in forward.slots.modules.items()
        if path.endswith(("o_proj", ".experts.down_proj", "shared_experts.up_proj"))
    }
    packed = told(modules, {"o_proj": 2, "down_proj": 2, "up_proj": 2}, config)
    export(packed, tmp_path / "out", forward.slots.modules)
    written = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert {name: written[name] for name in config} == config
    assert not written["rank_pattern"]
    assert not written["alpha_pattern"]
    check_by_peft("deepseek_v3", forward, packed, tmp_path / "out")
    assert torch.equal(read(forward, tmp_path / "out").run, packed.run)


def test_an_adapter_of_one_dense_layer_begun_as_linears_only_can_be_is_loaded(tmp_path: Path) -> None:
    """Its linear is exported as a parameter, for which PEFT has no such beginning, and no pattern of layers."""
    forward = make_forward(BASES["deepseek_v3"])
    modules = {path: each for path, each in forward.slots.modules.items() if path.endswith("layers.0.mlp.down_proj")}
    assert len(modules) == 1
    config = {"target_modules": ["down_proj"], "layers_to_transform": [0], "layers_pattern": ["layers"]}
    for each in ("orthogonal", "mica"):
        packed = told(modules, {"down_proj": 2}, config | {"init_lora_weights": each})
        export(packed, tmp_path / each, forward.slots.modules)
        check_by_peft("deepseek_v3", forward, packed, tmp_path / each)
        assert torch.equal(read(forward, tmp_path / each).run, packed.run)
