"""Adapters with the names that transformers used for vision models before 4.52: like PEFT, the engine reads them."""

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
from tests.engine.saved_families import SERVED, save_adapter, save_base


def read(base: Path, folder: Path) -> Packed:
    return read_adapter(LocalFolder(folder, "adapter"), Fit(find_modules(read_model(base)), 8), None)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def test_older_names_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base = save_base("gemma3_seeing", tmp_path / "base")
    now = save_adapter(base, tmp_path / "now", 4, **SERVED["gemma3_seeing"])
    before = shutil.copytree(now, tmp_path / "before")
    older = {
        key.replace("model.language_model.", "language_model.model."): each for key, each in tensors(now).items()
    }
    assert older.keys().isdisjoint(tensors(now))
    save_file(older, before / WEIGHTS, {"format": "pt"})
    told, known = (
        dict(PeftModel.from_pretrained(read_model(base), str(folder)).named_parameters()) for folder in (before, now)
    )
    assert all(torch.equal(told[name], each) for name, each in known.items())
    assert torch.equal(read(base, before).run, read(base, now).run)
    save_file(older | tensors(now), before / WEIGHTS, {"format": "pt"})
    with pytest.raises(errors.CorruptFile, match="twice, by two names"):
        read(base, before)
