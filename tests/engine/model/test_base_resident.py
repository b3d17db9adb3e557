"""A resident base keeps what its own files held when it was read; no other files are used, and no later changes."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mint_contracts.errors import UnsupportedBase
from mint_contracts.source import Source
from mint_engine.build import build
from mint_engine.model.base import Base, load_base
from mint_engine.scheduling.scheduler import Limits
from mint_gateway.planning.config import read_shape
from tests.engine import saved_families
from tests.engine.made import edit_base
from tests.engine.parallel.playing import TURNS, draw_adapter, play
from tests.engine.running import settings_for

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]


def load(path: Path, dtype: torch.dtype = torch.float32) -> Base:
    return load_base(path, dtype, CPU)


@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_later_changes_of_a_bases_files_change_nothing(folder: Path, stored: torch.dtype, dtype: torch.dtype) -> None:
    """Other files may be copied over them, or the claim's disk may lose them."""
    path = folder / "model.safetensors"
    tensors = {name: each.to(stored) for name, each in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    base = load(folder, dtype)
    before = {name: each.clone() for name, each in base.model.named_parameters()}
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(each, before[name]) for name, each in base.model.named_parameters())
    os.truncate(path, 0)
    assert all(torch.equal(each, before[name]) for name, each in base.model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_whole_numbers_are_no_weights(folder: Path, dtype: torch.dtype) -> None:
    """Whatever scales lie beside them, nothing in the config says that they are to be used."""
    path, name = folder / "model.safetensors", "model.layers.0.self_attn.q_proj.weight"
    tensors = load_file(path)
    save_file(tensors | {name: (tensors[name] * 100).to(dtype)}, path, metadata={"format": "pt"})
    with pytest.raises(UnsupportedBase, match=f"integer weights, {name} among them, but no quantization_config"):
        load(folder)


def test_an_older_word_for_how_files_are_quantised_is_heard(folder: Path) -> None:
    edit_base(folder, compression_config={"quant_method": "compressed-tensors", "config_groups": {}})
    with pytest.raises(UnsupportedBase, match="'compressed-tensors' with weights: none"):
        load(folder)


def test_no_other_file_is_read_in_place_of_its_weights(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    edit_base(folder, transformers_weights="other.safetensors")
    with pytest.raises(UnsupportedBase, match="remove transformers_weights"):
        load(folder)


@pytest.mark.parametrize(
    "changes", [{"vocab_size": 8_000_000}, {"intermediate_size": 1_000_000}, {"num_hidden_layers": 300}]
)
def test_a_config_of_far_more_than_its_files_hold_is_refused_before_that_is_made(
    folder: Path, changes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*_: Any, **__: Any) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr("mint_engine.model.base.load_weights", make)
    edit_base(folder, **changes)
    with pytest.raises(UnsupportedBase, match=r"a config\.json of [\d,]+ numbers, but weights of [\d,]+"):
        load(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "deepseek_v3"])
def test_what_own_kernels_have_packed_is_held_once_where_nobody_trains(
    family: str, tied: bool, tmp_path: Path
) -> None:
    """Without training, packed weights are held once, and answers stay equal; experts are computed in place."""
    base, answers, held = saved_families.save_base(family, tmp_path / "base", tie_word_embeddings=tied), [], []
    for store in (None, Source(f"file://{tmp_path}/runs")):
        settings = settings_for(base, dtype="float32", training_store=store)
        read, slots, generation = build(settings, base, Limits())
        try:
            assert generation.compute.startswith("lean")
            slots.load(0, draw_adapter(slots, 4))
            answers.append(play(generation._forward, TURNS[:4]))
            held.append(sum(each.numel() for each in read.model.parameters()))
        finally:
            generation.close()
    assert torch.equal(*answers)
    shape = read_shape(json.loads((base / "config.json").read_text()))
    embedding = shape.vocabulary * shape.hidden if tied else 0
    assert held[1] - held[0] == shape.packed_parameters(settings.context_length) - embedding
