"""Adapters that name a text model's layers otherwise than the base: trained on it alone, or by older names."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from mint_contracts import errors
from mint_engine.adapters.check import Fit
from mint_engine.adapters.packed import Packed
from mint_engine.adapters.read import read_adapter
from mint_engine.model.modules import find_modules
from mint_engine.sources.fetch import WEIGHTS
from mint_engine.sources.local import LocalFolder
from tests.engine.families import read_model
from tests.engine.made import edit_config
from tests.engine.saved_families import SERVED, save_adapter, save_base


def read(base: Path, folder: Path) -> Packed:
    return read_adapter(LocalFolder(folder, "adapter"), Fit(find_modules(read_model(base)), 8), None)


PREFIXES = {name: f"base_model.model.{name}." for name in ("model", "model.language_model", "language_model.model")}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def renamed(folder: Path, target: Path, before: str, after: str) -> Path:
    shutil.copytree(folder, target)
    save_file({key.replace(before, after): each for key, each in tensors(folder).items()}, target / WEIGHTS)
    assert tensors(target).keys().isdisjoint(tensors(folder))
    return target


@pytest.mark.parametrize("name", PREFIXES)
@pytest.mark.parametrize("family", ["gemma3", "gemma3_seeing", "qwen3_moe", "kimi_seeing"])
def test_each_prefix_means_the_same(family: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base = save_base(family, tmp_path / "base")
    now = save_adapter(base, tmp_path / "now", 4, **SERVED[family])
    own = PREFIXES["model.language_model" if family.endswith("_seeing") else "model"]
    if own != PREFIXES[name]:
        other = renamed(now, tmp_path / "other", own, PREFIXES[name])
        assert torch.equal(read(base, other).run, read(base, now).run)


def test_a_pattern_that_knows_only_the_other_prefix_is_refused(tmp_path: Path) -> None:
    """PEFT computes a linear's scaling from the name by which it was trained."""
    (tmp_path / "base").mkdir()
    base = save_base("gemma3_seeing", tmp_path / "base")
    now = save_adapter(base, tmp_path / "now", 4, **SERVED["gemma3_seeing"])
    alone = renamed(now, tmp_path / "alone", PREFIXES["model.language_model"], PREFIXES["model"])
    edit_config(alone, alpha_pattern={"layers.0.self_attn.q_proj": 64})
    scalings = read(base, alone).header.scalings
    assert sorted(set(scalings)) == [2, 16]
    edit_config(alone, alpha_pattern={"model.layers.0.self_attn.q_proj": 64})
    with pytest.raises(errors.UnsupportedAdapter, match=r"gives model\.layers\.0\.self_attn\.q_proj a rank or alpha"):
        read(base, alone)


def test_peft_reads_older_names(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base = save_base("gemma3_seeing", tmp_path / "base")
    now = save_adapter(base, tmp_path / "now", 4, **SERVED["gemma3_seeing"])
    before = renamed(now, tmp_path / "before", PREFIXES["model.language_model"], PREFIXES["language_model.model"])
    told, known = (
        dict(PeftModel.from_pretrained(read_model(base), str(folder)).named_parameters()) for folder in (before, now)
    )
    assert all(torch.equal(told[name], each) for name, each in known.items())
    save_file(tensors(before) | tensors(now), before / WEIGHTS)
    with pytest.raises(errors.CorruptFile, match="twice, by two names"):
        read(base, before)
