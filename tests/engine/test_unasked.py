"""Adapters of bases that see, which are asked in text alone: what they have of the vision tower is passed over."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from mint_contracts import errors
from mint_engine.adapters import pack as command
from mint_engine.adapters.check import Fit
from mint_engine.adapters.packed import Packed
from mint_engine.adapters.read import read_adapter
from mint_engine.model.modules import find_modules, unasked_linears
from mint_engine.sources.fetch import CONFIG, PACKED, WEIGHTS
from mint_engine.sources.local import LocalFolder
from tests.engine.families import SEEING, make_model, read_model
from tests.engine.made import edit_config
from tests.engine.saved_families import BASES, save_adapter, save_base

TEXT = "base_model.model.model.language_model."
Q0 = "layers.0.self_attn.q_proj"


def read(base: Path, folder: Path) -> Packed:
    model = read_model(base)
    fit = Fit(find_modules(model), 8, unasked=unasked_linears(model))
    return read_adapter(LocalFolder(folder, "adapter 'a'"), fit, None)


def rename(folder: Path, name: Callable[[str], str]) -> None:
    save_file({name(key): each for key, each in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def keep(folder: Path, wanted: Callable[[str], bool]) -> int:
    """Leave those tensors; how many others there were."""
    tensors = load_file(folder / WEIGHTS)
    kept = {name: each for name, each in tensors.items() if wanted(name)}
    save_file(kept, folder / WEIGHTS)
    return len(tensors) - len(kept)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    return save_base("gemma3_seeing", tmp_path / "base")


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("gemma3_seeing", ["q_proj"]),
        ("gemma3_seeing", "all-linear"),
        ("kimi_seeing", ["q_proj", "o_proj"]),
        ("kimi_seeing", ["o_proj", "in_proj", "attn.proj"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("older", [False, True])
def test_they_are_what_they_are_without(tmp_path: Path, family: str, targets: Any, older: bool) -> None:
    (tmp_path / "base").mkdir()
    base = save_base(family, tmp_path / "base")
    whole = save_adapter(base, tmp_path / "whole", 4, target_modules=targets)
    if older:
        rename(whole, lambda name: name.replace("model.vision_tower.", "vision_tower.vision_model."))
    with capture_logs() as log:
        found = read(base, whole)
    left_out = keep(whole, lambda name: name.startswith(TEXT))
    assert left_out > 0
    assert torch.equal(found.run, read(base, whole).run)
    assert [line for line in log if line["event"] == "tensors_passed_over"] == [
        {
            "event": "tensors_passed_over", "log_level": "info",
            "adapter": "adapter 'a'", "tensors": left_out, "of": left_out + len(load_file(whole / WEIGHTS)),
        }
    ]  # fmt: skip


def test_what_is_packed_of_one_is_taken(base: Path, tmp_path: Path) -> None:
    whole = save_adapter(base, tmp_path / "whole", 4, target_modules="all-linear")
    targets = json.loads((whole / CONFIG).read_text())["target_modules"]
    assert "fc1" in targets, "of the vision tower alone"
    order = ["pack", str(whole), str(tmp_path / "packed" / PACKED), "--base", str(base), "--dtype", "float32"]
    assert command.main(order) == 0
    assert torch.equal(read(base, tmp_path / "packed").run, read(base, whole).run)


def test_one_of_the_vision_tower_alone_is_refused(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "seen", 4, target_modules=["fc1"])
    with pytest.raises(errors.UnsupportedAdapter, match="only has tensors of vision_tower, which text never reaches"):
        read(base, folder)


@pytest.mark.parametrize("broken", [f"{TEXT}{Q0}", f"{TEXT}layers.9.self_attn.q_proj"])
def test_the_rest_must_be_right_all_the_same(base: Path, tmp_path: Path, broken: str) -> None:
    folder = save_adapter(base, tmp_path / "a", 4, target_modules=["q_proj"])
    tensors = load_file(folder / WEIGHTS)
    tensors[f"{broken}.lora_A.weight"] = torch.zeros(4, 3)
    tensors[f"{broken}.lora_B.weight"] = torch.zeros(3, 4)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises((errors.ShapeMismatch, errors.UnknownTargetModules), match=broken.removeprefix(TEXT)):
        read(base, folder)


@pytest.mark.parametrize("name", ["fc9", "vision_tower", "c_attn"])
def test_what_neither_part_has_is_no_target(base: Path, tmp_path: Path, name: str) -> None:
    folder = save_adapter(base, tmp_path / "a", 4, target_modules=["q_proj"])
    edit_config(folder, target_modules=["q_proj", name])
    with pytest.raises(errors.UnknownTargetModules, match=f"targets {name}; the base model offers"):
        read(base, folder)


def test_names_of_the_text_model_alone_are_told_where_the_base_has_them(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "a", 4, target_modules=["q_proj"])
    rename(folder, lambda name: name.replace(TEXT, "base_model.model.model."))
    with pytest.raises(
        errors.UnknownTargetModules,
        match=rf"tensors of model\.{Q0}, a linear that this base has at model\.language_model\.{Q0}; rename",
    ):
        read(base, folder)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_moe"])
def test_names_of_a_base_that_sees_are_told_where_a_text_model_has_them(tmp_path: Path, family: str) -> None:
    (tmp_path / "base").mkdir()
    base = save_base(family, tmp_path / "base")
    folder = save_adapter(base, tmp_path / "a", 4, target_modules=["q_proj"])
    rename(folder, lambda name: name.replace("base_model.model.model.", TEXT))
    with pytest.raises(
        errors.UnknownTargetModules,
        match=rf"tensors of model\.language_model\.{Q0}, a linear that this base has at model\.{Q0}; rename",
    ):
        read(base, folder)


def test_only_bases_that_see_have_linears_that_text_never_reaches() -> None:
    assert {name for name, config in BASES.items() if unasked_linears(make_model(config))} == SEEING.keys()
