"""Loading a base: what is served, and one clear error for everything that is not."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from e2e.samples import Samples
from mint_contracts.errors import (
    CapacityExceeded,
    CorruptFile,
    MintError,
    NonFiniteWeights,
    SourceNotFound,
    UnsafeFormat,
    UnsupportedBase,
)
from mint_contracts.layer_groups import group_layers
from mint_engine.build import build
from mint_engine.model.base import load_base
from mint_engine.model.cache import count_pages
from mint_engine.model.modules import find_modules
from mint_engine.preflight import check_small_files
from mint_engine.scheduling.scheduler import Limits
from tests.engine import saved_families
from tests.engine.made import edit_base
from tests.engine.running import ALL_SEVEN, settings_for

CPU = torch.device("cpu")
# Values that a configuration's key may have by mistake.
ODD: list[Any] = [None, -3, 0, 1.5, float("nan"), float("inf"), True, "text", [], [None], {}, {"a": {"b": [1]}}]
PROMPT = [5, 9, 200, 31, 7, 5, 88, 90, 14]
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 11422654\n"


def load(path: Path) -> Any:
    return load_base(path, torch.float32, CPU)


def edit_weights(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    path = folder / "model.safetensors"
    tensors: dict[str, torch.Tensor | None] = {**load_file(path), **changes}
    save_file({k: v for k, v in tensors.items() if v is not None}, path, metadata={"format": "pt"})


def test_a_base_is_frozen_and_knows_its_end(base: Path) -> None:
    loaded = load(base)
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert loaded.eos == {0}
    assert loaded.context_length == 256
    assert loaded.architecture == "LlamaForCausalLM"


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"spec\.source"):
        load(tmp_path / "nowhere")
    with pytest.raises(SourceNotFound, match=r"no \*\.safetensors"):
        load(tmp_path)


def test_pickles_are_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFormat, match=r"pytorch_model\.bin"):
        load(folder)
    with pytest.raises(UnsafeFormat):
        load(folder / "pytorch_model.bin")


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CorruptFile, match=r"model\.safetensors is truncated"):
        load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_git_has_not_fetched(name: str, folder: Path) -> None:
    """As after a clone without git-lfs. Files that are not read may stay pointers."""
    for other in ("small.gguf", "consolidated.safetensors", "tokenizer.model", "vocab.json", "notes.txt"):
        (folder / other).write_text(POINTER)
    load(folder)
    (folder / name).write_text(POINTER)
    with pytest.raises(CorruptFile, match=f"Git LFS pointer in place of {name}; fetch it with git lfs pull"):
        load(folder)


def test_a_gguf_that_git_has_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text(POINTER)
    for path in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(CorruptFile, match=r"Git LFS pointer in place of model\.gguf; fetch it with git lfs pull"):
            load(path)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04 something else")
    for path in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(CorruptFile, match="GGUF"):
            load(path)


def test_a_truncated_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises((UnsupportedBase, CorruptFile)):
        load(tmp_path)


def test_several_ggufs(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UnsupportedBase, match=r"a\.gguf, b\.gguf"):
        load(tmp_path)


def test_a_shard_that_is_not_there(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptFile, match="model-00002-of-00002"):
        load(folder)
    (folder / "model.safetensors.index.json").write_text("[")
    with pytest.raises(CorruptFile, match=r"unreadable model\.safetensors\.index\.json"):
        load(folder)


def test_an_index_as_transformers_does_not_read_it(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    names = load_file(folder / "one.safetensors")
    told: dict[str, Any] = {"weight_map": dict.fromkeys(names, "one.safetensors")}
    for wrong in (told, told | {"metadata": []}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(wrong))
        with pytest.raises(CorruptFile, match=r'without "metadata", which transformers reads: put {} there'):
            load(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(told | {"metadata": {}}))
    assert load(folder)


def test_weights_that_are_there_a_second_time_are_not_read(folder: Path) -> None:
    """As Mistral publishes them, for its own code."""
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")})
    )
    save_file({"w.experts.0.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}, folder / "consolidated.safetensors")
    load(folder)
    (folder / "consolidated.safetensors").write_bytes(b"half of it")
    load(folder)


def test_weights_of_a_type_that_is_not_read(folder: Path) -> None:
    edit_weights(folder, {"model.norm.weight": torch.ones(64, dtype=torch.complex64)})
    with pytest.raises(UnsupportedBase, match=r"model\.safetensors: has tensors of C64, which is not supported"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model_type": "nothing-known"}, UnsupportedBase, "configuration"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}, UnsupportedBase, "configuration"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedBase, "quantised"),
        ({"num_hidden_layers": 3}, UnsupportedBase, "lacks"),
        ({"hidden_size": 128}, UnsupportedBase, "base"),
        ({"hidden_size": "64"}, UnsupportedBase, "unsupported configuration: .*'hidden_size' expected int"),
        ({"rope_parameters": [1]}, UnsupportedBase, "unsupported configuration: .*'rope_parameters'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, UnsupportedBase, "unsupported configuration: .*factor"),
        ({"layer_types": ["odd"]}, UnsupportedBase, "unsupported configuration: .*layer_types"),
        ({"quantization_config": ["fp8"]}, UnsupportedBase, "quantised by None"),
        ({"text_config": 7, "vocab_size": None}, UnsupportedBase, "unsupported configuration: .*vocab_size"),
    ],
)
def test_configurations(folder: Path, changes: dict[str, Any], error: type[MintError], says: str) -> None:
    edit_base(folder, **changes)
    with pytest.raises(error, match=says):
        load(folder)


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_every_configuration_is_served_or_refused_in_words(odd: Any, folder: Path) -> None:
    """Checked before the weights are copied, by `check_small_files`."""
    path, settings = folder / "config.json", settings_for(folder)
    told = json.loads(path.read_text())
    for key in (*told, "text_config", "quantization_config", "rope_scaling", "layer_types", "sliding_window"):
        path.write_text(json.dumps(told | {key: odd}))
        with suppress(UnsupportedBase, CapacityExceeded):
            check_small_files(settings, folder, "base")


def test_no_configuration(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(CorruptFile, match="not JSON"):
        load(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(CorruptFile, match="not JSON"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CorruptFile, match=r"has no config\.json; name the folder"):
        load(folder)


def test_a_missing_weight(folder: Path) -> None:
    edit_weights(folder, {"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(UnsupportedBase, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_missing_expert(tmp_path: Path) -> None:
    saved_families.save_base("qwen3_moe", tmp_path)
    edit_weights(tmp_path, {"model.layers.0.mlp.experts.3.gate_proj.weight": None})
    with pytest.raises(
        UnsupportedBase, match=r"weights of model\.layers\.0\.mlp\.experts\.gate_up_proj that .* lacks"
    ):
        load(tmp_path)


def test_nan_weights(folder: Path) -> None:
    edit_weights(folder, {"model.norm.weight": torch.full((64,), torch.nan)})
    with pytest.raises(NonFiniteWeights, match=r"model\.norm\.weight"):
        load(folder)


def test_a_tokenizer_that_is_code_is_told_of_before_weights_are_read(folder: Path, base: Path) -> None:
    """As Kimi-K2 is published. The remedy that the error names works."""
    made, told = folder / "tokenizer.json", folder / "tokenizer_config.json"
    content, plain = made.read_text(), json.loads(told.read_text()) | {"tokenizer_class": "TikTokenTokenizer"}
    made.unlink()
    (folder / "tiktoken.model").write_text("IQ== 0\n")
    told.write_text(
        json.dumps(plain | {"auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}})
    )
    norm = load_file(folder / "model.safetensors")["model.norm.weight"]
    edit_weights(folder, {"model.norm.weight": torch.full((64,), torch.nan)})  # reading it raises an error
    with pytest.raises(UnsupportedBase, match=r"custom code.* put a tokenizer\.json beside"):
        load(folder)
    edit_weights(folder, {"model.norm.weight": norm})
    made.write_text(content)
    assert load(folder).tokenizer.decode(PROMPT) == load(base).tokenizer.decode(PROMPT)


def test_no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UnsupportedBase, match="tokenizer"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"context_length": 300}, UnsupportedBase, "has 256 positions"),
        ({"kv_cache_bytes": 1 << 12}, CapacityExceeded, "give at least"),
        ({"dtype": "int8"}, UnsupportedBase, "bfloat16"),
        ({"device": "abacus"}, UnsupportedBase, "not available"),
        ({"target_modules": ("q_proj", "w_qkv")}, UnsupportedBase, "w_qkv.*offers down_proj"),
        ({"tensor_parallel_size": 2, "context_length": 300}, UnsupportedBase, "has 256 positions"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_weights_are_read(
    folder: Path, changes: dict[str, Any], error: type[MintError], says: str
) -> None:
    norm = torch.full((64,), torch.nan)  # reading it raises an error
    edit_weights(folder, {"model.norm.weight": norm})
    with pytest.raises(error, match=says):
        build(settings_for(folder, **changes), folder, Limits())


def test_a_cache_holds_what_a_base_is_proven_on_however_short_requests_are() -> None:
    assert count_pages(4 * 100, 100, 16, group_layers([None])) == 3
    with pytest.raises(CapacityExceeded, match=r"40 tokens needs 3; give at least 400 bytes$"):
        count_pages(3 * 100, 100, 16, group_layers([None]))


def test_target_modules_limit_what_adapters_reach(base: Path) -> None:
    model = load(base).model
    every = find_modules(model)
    assert {path.rpartition(".")[2] for path in every} == set(ALL_SEVEN)
    assert "lm_head" not in every
    assert len(every) == 14
    some = find_modules(model, ("q_proj", "down_proj"))
    assert sorted(some) == sorted(path for path in every if path.endswith(("q_proj", "down_proj")))
    down = some["model.layers.1.mlp.down_proj"]
    assert (down.in_features, down.out_features) == (96, 64)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_base_that_transformers_cannot_compute_is_reported(folder: Path, ranks: int) -> None:
    """transformers constructs this model, but fails in its first layer."""
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    edit_base(folder, rope_parameters=rope)
    with pytest.raises(UnsupportedBase, match="The size of tensor a"):
        build(settings_for(folder, tensor_parallel_size=ranks), folder, Limits())


@pytest.fixture(scope="module")
def samples() -> Samples:
    from e2e.samples import prepare

    return prepare()


@pytest.mark.timeout(1200)  # the first run on a machine makes the samples
def test_gguf_equals_safetensors(samples: Samples) -> None:
    """The GGUF, dequantised, has the same weights and logits as the safetensors copy."""
    packed, plain = load(samples.base_gguf_file), load(samples.base)
    theirs = dict(plain.model.named_parameters())
    for name, weight in packed.model.named_parameters():
        assert torch.equal(weight, theirs[name]), name
    tokens = packed.tokenizer.encode("The capital of France is")
    assert tokens == plain.tokenizer.encode("The capital of France is")
    assert packed.eos == plain.eos
    with torch.inference_mode():
        logits = [each.model(input_ids=torch.tensor([tokens])).logits for each in (packed, plain)]
    assert torch.equal(*logits)
