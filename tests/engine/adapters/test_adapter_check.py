"""Check adapters before they are served: PEFT's files are read right; each kind of broken file has its own error."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mint_contracts import errors
from mint_engine.adapters import peft_config
from mint_engine.adapters.check import Fit, check_numbers
from mint_engine.adapters.packed import Packed
from mint_engine.adapters.read import read_adapter
from mint_engine.sources.fetch import CONFIG, WEIGHTS
from mint_engine.sources.local import LocalFolder
from tests.engine.made import (
    ALL_SEVEN,
    BASE_NAME,
    edit_config,
    edit_tensors,
    editing,
    lora_names,
    peft_adapter,
    tiny_fit,
    unpack,
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    peft_adapter(folder)
    return folder


@pytest.fixture
def adapter(good: Path, tmp_path: Path) -> Path:
    """A good adapter to break."""
    return shutil.copytree(good, tmp_path / "adapter")


def read(folder: Path, fit: Fit | None = None, dtype: torch.dtype = torch.float32) -> Packed:
    return read_adapter(LocalFolder(folder, "adapter 'a'"), fit or tiny_fit(), dtype)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 8, "lora_alpha": 4, "target_modules": ALL_SEVEN, "use_rslora": True},
        {"target_modules": ALL_SEVEN, "rank_pattern": {"q_proj": 2, "layers.1.self_attn.k_proj": 7},
         "alpha_pattern": {"k_proj": 3, "model.layers.0.mlp.up_proj": 5}},
        {"target_modules": ALL_SEVEN, "use_rslora": True, "rank_pattern": {r"^model\.layers\.0\..*q_proj": 9},
         "alpha_pattern": {r"layers\.\d+\.mlp\..*": 1}},
        {"target_modules": r".*\.mlp\.(up|down)_proj"},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": ["model.layers.0.self_attn.q_proj", "v_proj"], "layers_to_transform": [1]},
        {"target_modules": ALL_SEVEN, "layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "c_attn"]},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"lora_dropout": 0.1, "exclude_modules": ["v_proj"]},
        {"target_modules": ALL_SEVEN, "exclude_modules": r".*\.layers\.0\..*"},
    ],
    ids=str,
)  # fmt: skip
def test_what_peft_writes_is_read_with_pefts_own_ranks_scalings_and_values(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    model = peft_adapter(tmp_path, **options)
    weights = read(tmp_path)
    deltas = unpack(weights)

    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and "default" in module.lora_A
    }
    assert deltas.keys() == layers.keys()
    for path, layer in layers.items():
        delta = deltas[path]
        assert delta.scaling == layer.scaling["default"]
        assert torch.equal(delta.a, layer.lora_A["default"].weight)
        assert torch.equal(delta.b, layer.lora_B["default"].weight)
    assert weights.rank == max(layer.r["default"] for layer in layers.values())


def test_tensors_come_in_the_bases_dtype_and_sum_up_to_what_is_held(adapter: Path) -> None:
    exact, rounded = read(adapter), read(adapter, dtype=torch.bfloat16)
    assert rounded.run.dtype == torch.bfloat16
    assert rounded.run.nbytes * 2 == exact.run.nbytes
    assert torch.equal(rounded.run, exact.run.to(torch.bfloat16))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read(adapter: Path, stored: torch.dtype) -> None:
    halves = {name: tensor.to(stored) for name, tensor in load_file(adapter / WEIGHTS).items()}
    edit_tensors(adapter, dict(halves))
    path, delta = next(iter(unpack(read(adapter)).items()))
    assert torch.equal(delta.a, halves[f"base_model.model.{path}.lora_A.weight"].float())


def test_the_revision_is_the_content(adapter: Path) -> None:
    before = read(adapter).revision
    assert before == read(adapter).revision
    assert before.startswith("sha256:")
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(dict(reversed(config.items())), indent=7))
    assert read(adapter).revision == before, "the order and layout of the config say nothing"
    edit_config(adapter, lora_alpha=9)
    assert read(adapter).revision != before
    edit_config(adapter, lora_alpha=config["lora_alpha"])
    assert read(adapter).revision == before
    name = lora_names(adapter)[0]
    edit_tensors(adapter, {name: load_file(adapter / WEIGHTS)[name] * 2})
    assert read(adapter).revision != before


def _tensors(change: Callable[[str, torch.Tensor], dict[str, torch.Tensor | None]]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        name = lora_names(folder)[0]
        edit_tensors(folder, change(name, load_file(folder / WEIGHTS)[name]))

    return edit


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))


def _nan(_name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor | None]:
    tensor[0, 0] = float("nan")
    return {_name: tensor}


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1000\n"
SLOW = {"(.|.)" * 8 + f".*x{number}": 4 for number in range(1000)}

BROKEN: dict[str, tuple[Callable[[Path], object], type[errors.MintError], str]] = {
    "no config": (lambda f: (f / CONFIG).unlink(), errors.SourceNotFound, CONFIG),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), errors.SourceNotFound, WEIGHTS),
    "no folder": (shutil.rmtree, errors.SourceNotFound, "does not exist"),
    "pickled": (_pickled, errors.UnsafeFormat, "adapter_model.bin"),
    "pickle renamed": (
        lambda f: (f / WEIGHTS).write_bytes(pickle.dumps({"a": [1] * 99})), errors.UnsafeFormat, "pickled"),
    "torch zip renamed": (lambda f: torch.save({"a": torch.ones(3)}, f / WEIGHTS), errors.UnsafeFormat, "pickled"),
    "config not JSON": (lambda f: (f / CONFIG).write_text("{r: 4"), errors.CorruptFile, "not JSON"),
    "config a list": (lambda f: (f / CONFIG).write_text("[]"), errors.CorruptFile, "object"),
    "config nested without end": (lambda f: (f / CONFIG).write_text("[" * 100_000), errors.CorruptFile, "not JSON"),
    "config too large": (lambda f: (f / CONFIG).write_text(" " * (1 << 20) + "{}"), errors.CorruptFile, "above"),
    "truncated weights": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), errors.CorruptFile, "truncated"),
    "truncated header": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:99]), errors.CorruptFile, "truncated"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), errors.CorruptFile, "truncated"),
    "a Git LFS pointer": (lambda f: (f / WEIGHTS).write_text(POINTER), errors.CorruptFile, "git lfs pull"),
    "a config's LFS pointer": (lambda f: (f / CONFIG).write_text(POINTER), errors.CorruptFile, "git lfs pull"),
    "trailing bytes": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"x"), errors.CorruptFile, "beyond"),
    "another base": (editing(base_model_name_or_path="other/base"), errors.WrongBase, "other/base"),
    "rank above the limit": (editing(r=17), errors.RankTooLarge, "17"),
    "rank pattern above the limit": (editing(rank_pattern={"q_proj": 99}), errors.RankTooLarge, "99"),
    "tensors above the limit": (
        _tensors(lambda n, t: {n: torch.ones(17, t.shape[1])}), errors.RankTooLarge, "17"),
    "unknown names": (editing(target_modules=["c_attn", "c_proj"]), errors.UnknownTargetModules, "c_attn, c_proj;"),
    "unknown modules": (
        _tensors(lambda n, t: {n: None, n.replace("q_proj", "zzz").replace("v_proj", "zzz"): t}),
        errors.UnknownTargetModules, "zzz"),
    "not targeted": (editing(target_modules=["v_proj"]), errors.CorruptFile, "target_modules"),
    "not that layer": (editing(layers_to_transform=[1]), errors.CorruptFile, "layers_to_transform"),
    "half missing": (_tensors(lambda n, t: {n: None}), errors.CorruptFile, "other half"),
    "wrong width": (
        _tensors(lambda n, t: {n: torch.ones(t.shape[0], t.shape[1] + 1)}), errors.ShapeMismatch, "33"),
    "wrong rank": (editing(r=5), errors.ShapeMismatch, "[5, 32]"),
    "not a matrix": (_tensors(lambda n, t: {n: t[None]}), errors.ShapeMismatch, "[1, 4, 32]"),
    "NaN": (_tensors(_nan), errors.NonFiniteWeights, "lora_A"),
    "infinity": (_tensors(lambda n, t: {n: t / 0}), errors.NonFiniteWeights, "lora_A"),
    "integers": (_tensors(lambda n, t: {n: t.to(torch.int32)}), errors.CorruptFile, "I32"),
    "doubles": (_tensors(lambda n, t: {n: t.double()}), errors.CorruptFile, "F64"),
    "other tensors": (
        lambda f: edit_tensors(f, {f"{Q0}.lora_magnitude_vector": torch.ones(32)}),
        errors.UnsupportedAdapter, "lora_magnitude_vector"),
    "embeddings": (
        lambda f: edit_tensors(f, {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 96)}),
        errors.UnsupportedAdapter, "lora_embedding_A"),
    "DoRA": (editing(use_dora=True), errors.UnsupportedAdapter, "use_dora"),
    "bias": (editing(bias="lora_only"), errors.UnsupportedAdapter, "bias"),
    "B with bias": (editing(lora_bias=True), errors.UnsupportedAdapter, "lora_bias"),
    "fan in fan out": (editing(fan_in_fan_out=True), errors.UnsupportedAdapter, "fan_in_fan_out"),
    "saved modules": (editing(modules_to_save=["lm_head"]), errors.UnsupportedAdapter, "modules_to_save"),
    "parameters": (editing(target_parameters=["experts.w"]), errors.UnknownTargetModules, "experts.w"),
    "replicated layers": (editing(layer_replication=[[0, 1]]), errors.UnsupportedAdapter, "layer_replication"),
    "activated LoRA": (editing(alora_invocation_tokens=[1]), errors.UnsupportedAdapter, "alora_invocation_tokens"),
    "trained tokens": (
        editing(trainable_token_indices=[3]), errors.UnsupportedAdapter, "trainable_token_indices"),
    "QA-LoRA": (editing(use_qalora=True), errors.UnsupportedAdapter, "use_qalora"),
    "Arrow": (editing(arrow_config={"top_k": 3}), errors.UnsupportedAdapter, "arrow_config"),
    "KaSA": (editing(kasa_config={"beta": 1e-4}), errors.UnsupportedAdapter, "kasa_config"),
    "BD-LoRA": (editing(use_bdlora={"nblocks": 2}), errors.UnsupportedAdapter, "use_bdlora"),
    "LoftQ": (editing(init_lora_weights="loftq"), errors.UnsupportedAdapter, "init_lora_weights"),
    "PiSSA": (editing(init_lora_weights="pissa"), errors.UnsupportedAdapter, "init_lora_weights"),
    "a field of tomorrow": (editing(use_quantum="yes"), errors.UnsupportedAdapter, "use_quantum"),
    "a field that is no text": (editing(**{"\ud800": 1}), errors.UnsupportedAdapter, "sets ? to 1"),
    "a target that is no text": (editing(target_modules=["\ud800"]), errors.UnknownTargetModules, "targets ?;"),
    "another method": (editing(peft_type="LOHA"), errors.UnsupportedAdapter, "LOHA"),
    "no method": (editing(peft_type=None), errors.UnsupportedAdapter, "peft_type"),
    "rank zero": (editing(r=0), errors.CorruptFile, "r 0"),
    "rank true": (editing(r=True), errors.CorruptFile, "r True"),
    "alpha text": (editing(lora_alpha="8"), errors.CorruptFile, "lora_alpha"),
    "alpha infinite": (editing(lora_alpha=float("inf")), errors.CorruptFile, "finite"),
    "alpha too long": (editing(lora_alpha=10**400), errors.CorruptFile, "finite"),
    "rsLoRA text": (editing(use_rslora="yes"), errors.CorruptFile, "use_rslora"),
    "no targets": (editing(target_modules=[]), errors.CorruptFile, "target_modules"),
    "pattern that blows up": (
        editing(alpha_pattern={"(a+)+$": 1}), errors.UnsupportedAdapter, "alpha_pattern"),
    "pattern of many ways": (
        editing(rank_pattern={"(.|.)" * 9: 4}), errors.UnsupportedAdapter, "rank_pattern"),
    "pattern of many ways within another": (
        editing(rank_pattern={"a|" + "(?:x|(.|.|y))" * 5 + r"[(|]\|": 4}), errors.UnsupportedAdapter, "rank_pattern"),
    "too many patterns": (editing(rank_pattern=SLOW), errors.UnsupportedAdapter, "for 4 linears; give fewer"),
    "pattern that is none": (editing(rank_pattern={"(q_proj": 1}), errors.CorruptFile, "regular expression"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_each_broken_kind_gets_exactly_its_error(adapter: Path, kind: str) -> None:
    spoil, error, told = BROKEN[kind]
    spoil(adapter)
    with pytest.raises(errors.MintError) as caught:
        read(adapter, tiny_fit(base_names=(BASE_NAME,)))
    assert type(caught.value) is error, caught.value
    assert told in caught.value.message
    assert str(caught.value).encode(), "it can be sent"
    assert caught.value.terminal


def test_unknown_modules_are_answered_with_what_the_base_offers(adapter: Path) -> None:
    edit_config(adapter, target_modules=["c_attn"])
    with pytest.raises(errors.UnknownTargetModules, match="offers down_proj, gate_proj, k_proj"):
        read(adapter)


def test_a_base_that_offers_fewer_modules_refuses_the_rest(adapter: Path) -> None:
    fit = tiny_fit()
    narrow = Fit({path: module for path, module in fit.modules.items() if "q_proj" in path}, fit.max_rank)
    with pytest.raises(errors.UnknownTargetModules, match="v_proj; the base model offers q_proj"):
        read(adapter, narrow)


def test_links_that_leave_the_folder_are_refused(adapter: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    (adapter / WEIGHTS).rename(outside)
    (adapter / WEIGHTS).symlink_to(outside)
    with pytest.raises(errors.SourceForbidden, match="symbolic link"):
        read(adapter)


def test_only_regular_files_are_opened(adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    os.mkfifo(adapter / WEIGHTS)
    with pytest.raises(errors.SourceNotFound):
        read(adapter)


def test_a_packed_adapter_is_asked_for_no_more_patterns_than_another(adapter: Path) -> None:
    packed = read(adapter)
    edit_config(adapter, rank_pattern=SLOW)
    config = peft_config.parse((adapter / CONFIG).read_bytes(), "adapter 'a'")
    with pytest.raises(errors.UnsupportedAdapter, match="too many patterns"):
        check_numbers(packed.header, config, tiny_fit(), "adapter 'a'")


def test_as_many_names_as_a_config_holds_are_looked_up(adapter: Path) -> None:
    edit_config(adapter, target_modules=[f"{number:x}" for number in range(100_000)])
    with pytest.raises(errors.UnknownTargetModules, match="targets 0, 1, 10 and 99,997 more"):
        read(adapter)


def test_the_worst_pattern_that_is_allowed_ends_soon() -> None:
    config = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"],
        "alpha_pattern": {f".*.*x{index}": 1 for index in range(100)},
    }  # fmt: skip
    parsed = peft_config.parse(json.dumps(config).encode(), "adapter 'a'")
    assert {parsed.numbers_of(path) for path in tiny_fit().modules} == {(4, 1.0)}
