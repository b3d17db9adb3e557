"""Module names mean what PEFT means by them: for a base, for what it trains, and for adapters."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from mint_contracts.errors import UnknownTargetModules, UnsupportedBase
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.check import Fit, check_numbers, check_packed
from mint_engine.adapters.peft_config import parse
from mint_engine.adapters.read import read_adapter
from mint_engine.model.modules import find_modules
from mint_engine.sources.local import LocalFolder
from mint_engine.training.policy import FormLimits, PolicySettings, form_of
from mint_engine.training.trainer import Trainer
from tests.engine.expert_adapters import BOTH, save
from tests.engine.families import FAMILIES, make_model
from tests.engine.training.at_once import create, packed_of
from tests.engine.training.frontier_families import base_of

DENSE = ("mlp.up_proj", "q_a_proj", "shared_experts.down_proj", "shared_experts.up_proj")
NAMES: list[tuple[str, ...]] = [
    ("up_proj",),
    ("shared_experts.up_proj",),
    ("mlp.up_proj", "self_attn.o_proj"),
    ("0.mlp.down_proj", "layers.2.self_attn.q_a_proj", "model.layers.1.self_attn.o_proj"),
    ("q_a_proj", "shared_experts.gate_proj", "experts.1.up_proj"),
]


def peft_names(module: Module) -> list[str]:
    return [module.name.replace("*", str(expert)) for expert in range(max(1, module.experts))]


def has(module: Module, targets: tuple[str, ...]) -> bool:
    """Whether PEFT would adapt the module; for experts, every one of them."""
    config = LoraConfig(target_modules=list(targets))
    return all(bool(check_target_module_exists(config, name)) for name in peft_names(module))


@pytest.mark.parametrize("targets", NAMES)
def test_a_base_offers_what_peft_would_adapt(targets: tuple[str, ...]) -> None:
    model = make_model(FAMILIES["deepseek_v3"])
    every = find_modules(model)
    named = tuple(each for each in targets if not each.startswith("experts.1"))
    assert find_modules(model, named) == {path: each for path, each in every.items() if has(each, targets)}


@pytest.mark.parametrize("name", ["experts.1.up_proj", "experts.up_proj", "pro", "experts", "_proj", "mlp.q_a_proj"])
def test_names_that_match_no_module_are_reported(name: str) -> None:
    """A single expert is no module either: the experts of a layer are adapted together."""
    with pytest.raises(UnsupportedBase, match=rf"names {name}, which this base lacks"):
        find_modules(make_model(FAMILIES["deepseek_v3"]), ("q_a_proj", name))


@pytest.mark.parametrize(
    ("offered", "wanted", "written"),
    [
        (DENSE, (), DENSE),
        (DENSE, ("shared_experts.up_proj",), ("shared_experts.up_proj",)),
        (DENSE, ("0.mlp.up_proj", "self_attn.q_a_proj"), ("0.mlp.up_proj", "self_attn.q_a_proj")),
        ((), ("mlp.up_proj", "o_proj"), ("mlp.up_proj", "o_proj")),
        (("up_proj",), ("shared_experts.up_proj",), ("shared_experts.up_proj",)),
    ],
)
def test_a_policy_is_written_by_names_that_mean_the_same_to_peft(
    offered: tuple[str, ...], wanted: tuple[str, ...], written: tuple[str, ...]
) -> None:
    """Also if the base offers only a few modules, which PEFT does not know."""
    base = base_of("deepseek_v3")
    every, modules = find_modules(base.model), find_modules(base.model, offered)
    trainer = Trainer(base, modules, 16, "", offered)
    create(trainer, "p", PolicySettings(rank=2, target_modules=wanted))
    packed = packed_of(trainer, "p")
    config = parse(packed.header.config, "p")
    assert json.loads(packed.header.config)["target_modules"] == sorted(written)
    adapted = {place.path for place in packed.header.layout.places}
    assert adapted == {path for path, each in every.items() if has(each, written)}
    check_packed(packed.header, Fit(modules, 16), "p")
    check_numbers(packed.header, config, Fit(modules, 16), "p")


@pytest.mark.parametrize("name", ["up_proj", "experts.up_proj", "1.mlp.up_proj", "gate_proj", "mlp.down_proj"])
def test_a_policy_names_nothing_wider_than_its_base_offers(name: str) -> None:
    modules = find_modules(make_model(FAMILIES["deepseek_v3"]), DENSE)
    with pytest.raises(UnknownTargetModules, match=f"p: targets {name}; the base model offers mlp.up_proj, q_a_proj"):
        form_of(PolicySettings(target_modules=(name, "q_a_proj")), modules, FormLimits(8, DENSE), "p")


@pytest.mark.parametrize("name", ["experts.*.up_proj", "*.up_proj"])
def test_a_policy_is_named_as_peft_names_modules(name: str) -> None:
    """Only MinT uses a star for an expert's number: nobody could read a revision that contains it."""
    modules = find_modules(make_model(FAMILIES["deepseek_v3"]))
    with pytest.raises(UnknownTargetModules, match=f"p: targets {re.escape(name)};"):
        form_of(PolicySettings(target_modules=(name,)), modules, FormLimits(8), "p")


def test_an_adapter_of_experts_is_told_that_a_base_offers_only_shared_ones(tmp_path: Path) -> None:
    save(tmp_path, "deepseek_v3", target_parameters=BOTH)
    modules = find_modules(make_model(FAMILIES["deepseek_v3"]), ("kv_b_proj", "q_a_proj", "shared_experts.down_proj"))
    with pytest.raises(
        UnknownTargetModules,
        match=r"targets mlp\.experts\.down_proj.* offers kv_b_proj, q_a_proj, shared_experts\.down_proj",
    ):
        read_adapter(LocalFolder(tmp_path, "adapter"), Fit(modules, 8), torch.float32)
