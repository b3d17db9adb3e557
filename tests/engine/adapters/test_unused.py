"""Adapters of vision bases that are given only text: their tensors of the vision tower are passed over."""

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from transformers import JanusConfig, JanusForConditionalGeneration, SmolVLMConfig, SmolVLMForConditionalGeneration

from mint_contracts import errors
from mint_engine.adapters import pack as command
from mint_engine.adapters.check import PASSED_OVER_BYTES, Fit
from mint_engine.adapters.header import LENGTH_BYTES
from mint_engine.adapters.packed import Packed
from mint_engine.adapters.read import read_adapter, read_found
from mint_engine.model.modules import find_modules, unused_linears
from mint_engine.sources.fetch import CONFIG, PACKED, WEIGHTS
from mint_engine.sources.local import LocalFolder
from tests.engine.families import SEEING, SIZES, make_model, read_model
from tests.engine.made import edit_config
from tests.engine.saved_families import BASES, save_adapter, save_base

TEXT = "base_model.model.model.language_model."
UNREACHED = "base_model.model.model.vision_tower.head.lora_A.weight"
Q0 = "layers.0.self_attn.q_proj"


def read(base: Path, folder: Path) -> Packed:
    model = read_model(base)
    fit = Fit(find_modules(model), 8, unused=unused_linears(model))
    return read_adapter(LocalFolder(folder, "adapter 'a'"), fit, None)


def rename(folder: Path, name: Callable[[str], str]) -> None:
    save_file({name(key): each for key, each in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def keep(folder: Path, wanted: Callable[[str], bool]) -> int:
    """Keep only the tensors that are wanted; return how many were removed."""
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
def test_adapters_are_read_as_without_their_unused_parts(
    tmp_path: Path, family: str, targets: Any, older: bool
) -> None:
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


def widen(folder: Path, numbers: int) -> None:
    """Add an F32 tensor before all others, of which the disk holds nothing (a sparse file)."""
    path = folder / WEIGHTS
    whole = path.read_bytes()
    start = LENGTH_BYTES + int.from_bytes(whole[:LENGTH_BYTES], "little")
    told = json.loads(whole[LENGTH_BYTES:start])
    told.pop("__metadata__", None)
    for each in told.values():
        each["data_offsets"] = [offset + 4 * numbers for offset in each["data_offsets"]]
    told[UNREACHED] = {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}
    header = json.dumps(told).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(LENGTH_BYTES, "little") + header)
        file.seek(4 * numbers, os.SEEK_CUR)
        file.write(whole[start:])


def test_ignored_parts_take_no_memory(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "a", 4, target_modules=["q_proj"])
    before = read(base, folder)
    widen(folder, 32 << 20)
    model = read_model(base)
    fit = Fit(find_modules(model), 8, unused=unused_linears(model))
    tracemalloc.start()
    try:
        found = read_adapter(LocalFolder(folder, "adapter 'a'"), fit, None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert torch.equal(found.run, before.run)
    assert peak < 32 << 20, "of 128 MiB"


def test_far_too_much_to_pass_over_is_refused_unread(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "a", 4, target_modules=["q_proj"])
    widen(folder, 25 << 30)
    with pytest.raises(
        errors.UnsupportedAdapter, match="has 100 GiB of tensors that text never reaches, and at most 1"
    ):
        read(base, folder)
    assert PASSED_OVER_BYTES == 1 << 30


def test_a_file_that_ends_within_what_is_passed_over_is_told_to_be_cut(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(base, tmp_path / "a", 4, target_modules=["q_proj"])
    widen(folder, 1 << 20)
    os.truncate(folder / WEIGHTS, 1 << 20)
    model = read_model(base)
    fit = Fit(find_modules(model), 8, unused=unused_linears(model))
    sizes = dict.fromkeys((CONFIG, WEIGHTS))  # like a server that tells no sizes
    with pytest.raises(errors.CorruptFile, match="is truncated: gave"):
        read_found(LocalFolder(folder, "adapter 'a'"), sizes, fit, None, lambda _: None)


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
def test_a_target_that_no_part_of_the_base_has_is_refused_unless_others_are_there(
    base: Path, tmp_path: Path, name: str
) -> None:
    folder = save_adapter(base, tmp_path / "a", 4, target_modules=["q_proj"])
    run = read(base, folder).run
    edit_config(folder, target_modules=["q_proj", name])
    assert torch.equal(read(base, folder).run, run)
    edit_config(folder, target_modules=[name])
    with pytest.raises(errors.UnknownTargetModules, match=f"targets {name}; the base model offers"):
        read(base, folder)


def test_a_vision_towers_linear_is_not_taken_for_the_text_models(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base = save_base("gemma3", tmp_path / "base")
    folder = save_adapter(base, tmp_path / "a", 4, target_modules=["q_proj"])
    rename(folder, lambda name: name.replace(".model.model.", ".model.vision_tower.vision_model.encoder."))
    with pytest.raises(
        errors.UnknownTargetModules, match=r"targets vision_tower\.\S+q_proj.*; the base model offers"
    ):
        read(base, folder)


def test_a_text_model_may_have_another_name() -> None:
    """SmolVLM's and Idefics3's is "model.text_model"."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SmolVLMConfig(vision_config=vision, text_config=SIZES | {"model_type": "llama"})
    with torch.device("meta"):
        model = SmolVLMForConditionalGeneration(config)
    parts = {path.split(".")[1] for path in unused_linears(model)}
    assert parts == {"vision_model", "connector"}
    assert {path.split(".")[1] for path in find_modules(model)} == {"text_model"}


def test_a_vision_tower_of_as_many_layers_is_not_taken_for_the_text_model() -> None:
    """As of Janus-Pro-1B, DeepSeek-VL-1.3B and Ovis2-1B: 24 and 24, with linears of the same names."""
    vision = {"hidden_size": 16, "num_hidden_layers": SIZES["num_hidden_layers"], "num_attention_heads": 2}
    config = JanusConfig(vision_config=vision, text_config=SIZES | {"model_type": "llama"}, vq_config={})
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    assert {path.split(".")[1] for path in find_modules(model)} == {"language_model"}
    assert "language_model" not in {path.split(".")[1] for path in unused_linears(model)}


def test_only_bases_that_see_have_linears_that_text_never_reaches() -> None:
    assert {name for name, config in BASES.items() if unused_linears(make_model(config))} == SEEING.keys()
