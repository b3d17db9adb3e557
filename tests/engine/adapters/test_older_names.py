"""Adapters that name a text model's layers otherwise than the base: trained on it alone, or by older names."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from mint_contracts import errors
from mint_engine.adapters.check import Fit
from mint_engine.adapters.export import export
from mint_engine.adapters.packed import Packed
from mint_engine.adapters.read import read_adapter
from mint_engine.model.modules import find_modules
from mint_engine.sources.fetch import WEIGHTS
from mint_engine.sources.local import LocalFolder
from tests.engine.expert_adapters import pairs_of
from tests.engine.families import read_model
from tests.engine.made import edit_config, packed_source
from tests.engine.saved_families import EXPERTS, SERVED, save_adapter, save_base


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


@pytest.mark.parametrize("beginning", ["language_model.model.", "model.", ""])
@pytest.mark.parametrize("family", ["gemma3_seeing", "kimi_seeing"])
def test_targets_in_full_are_those_of_the_model_that_was_trained(family: str, beginning: str, tmp_path: Path) -> None:
    """Programs that leave out a vision tower list the text model's linears one by one; PEFT finds what we export."""
    (tmp_path / "base").mkdir()
    base = save_base(family, tmp_path / "base")
    full = ["layers.0.self_attn.o_proj", "layers.1.self_attn.o_proj"]
    now = save_adapter(base, tmp_path / "now", 4, target_modules=[f"model.language_model.{each}" for each in full])
    after = PREFIXES[(beginning or "model.").removesuffix(".")]
    other = renamed(now, tmp_path / "other", PREFIXES["model.language_model"], after)
    edit_config(other, target_modules=[f"{beginning}{full[0]}", f"{beginning}{full[1]}"])
    packed, model = read(base, other), read_model(base)
    assert torch.equal(packed.run, read(base, now).run)
    assert torch.equal(read(base, packed_source(tmp_path / "packed", packed)).run, packed.run)
    export(packed, tmp_path / "out", find_modules(model))
    found = PeftModel.from_pretrained(model, str(tmp_path / "out")).named_parameters()
    assert sum("lora_" in name for name, _ in found) == len(tensors(tmp_path / "out")) == 4
    edit_config(other, target_modules=[f"{beginning}{full[0]}"])
    with pytest.raises(errors.CorruptFile, match=r"layers\.1\.self_attn\.o_proj, which its target_modules"):
        read(base, other)


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


def test_patterns_are_matched_with_three_names_where_the_base_has_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    base = save_base("gemma3_seeing", tmp_path / "base")
    now = save_adapter(base, tmp_path / "now", 4, **SERVED["gemma3_seeing"])
    edit_config(now, alpha_pattern={f"other_{number}": 64 for number in range(9)})
    alone = renamed(now, tmp_path / "alone", PREFIXES["model.language_model"], PREFIXES["model"])
    linears = len(tensors(now)) // 2
    monkeypatch.setattr("mint_engine.adapters.check.MOST_EFFORT", 9 * linears)
    read(base, now)
    with pytest.raises(errors.UnsupportedAdapter, match=f"too many patterns .* for {linears} linears; give fewer"):
        read(base, alone)


OLDER = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def split(base: Path, folder: Path, target: Path) -> Path:
    """Write an adapter on experts' parameters as one on each expert's linears, by the names of the base's files."""
    shutil.copytree(folder, target)
    together, pairs = tensors(folder), {}
    for path, expert, a, b in pairs_of(together, find_modules(read_model(base))):
        experts, _, leaf = path.rpartition(".")
        own = f"base_model.model.{experts}.{expert}.{OLDER[leaf]}".replace(".mlp.", ".block_sparse_moe.")
        pairs[f"{own}.lora_A.weight"], pairs[f"{own}.lora_B.weight"] = a.clone(), b.contiguous()
    rest = {name: each for name, each in together.items() if ".experts." not in name}
    save_file(rest | pairs, target / WEIGHTS)
    edit_config(target, target_modules=["q_proj", *OLDER.values()], target_parameters=None)
    return target


@pytest.mark.parametrize("family", ["mixtral", "minimax_m2"])
def test_experts_by_the_names_of_their_files(family: str, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base = save_base(family, tmp_path / "base")
    now = save_adapter(base, tmp_path / "now", 4, target_modules=["q_proj"], target_parameters=EXPERTS)
    before = split(base, now, tmp_path / "before")
    packed, known = read(base, before), read(base, now)
    assert torch.equal(packed.run, known.run)
    assert packed.header.scalings == known.header.scalings
    assert torch.equal(read(base, packed_source(tmp_path / "packed", packed)).run, known.run)
    with torch.no_grad():
        told, expected = (
            PeftModel.from_pretrained(read_model(base), str(folder))(input_ids=torch.arange(2, 30)[None]).logits
            for folder in (before, now)
        )
    torch.testing.assert_close(told, expected)
    edit_config(before, target_modules=["w1", "w2", "w3"])
    with pytest.raises(errors.CorruptFile, match=r"q_proj, which its target_modules does not name"):
        read(base, before)
    edit_config(before, target_modules=["q_proj", *OLDER.values()], alpha_pattern={"w1": 1})
    with pytest.raises(errors.UnsupportedAdapter, match=r"gives .*experts\.0\.w1 a rank or alpha by a pattern"):
        read(base, before)


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
