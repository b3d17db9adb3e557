"""Bases in float8, MXFP8, MXFP4 and NVFP4: the engine holds what a naive reference makes of their files."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from mint_contracts.errors import MintError, NonFiniteWeights, UnsupportedBase
from mint_contracts.quantisation import Nvfp4
from mint_engine.model.base import load_base
from mint_engine.model.dequantise import dequantise_float8, dequantise_mxfp4
from mint_engine.model.quantised import dequantised
from mint_engine.model.stored import open_tensors
from mint_engine.parallel.part import Part
from tests.engine.families import CPU
from tests.engine.made import edit_base
from tests.engine.quantised import (
    BLOCK,
    LAYOUTS,
    NVFP4,
    compressed,
    edit_tensors,
    naive_float8,
    naive_mxfp4,
    naive_nvfp4,
    quantise_float8,
    quantise_mxfp4,
    quantise_nvfp4,
    save_float8,
    save_nvfp4,
    save_quantised,
    tensors_of,
)
from tests.engine.read_bases import DTYPES, assert_equal, assert_read_alike, weights
from tests.engine.saved_families import save_base

FLOAT8_FAMILIES = ("qwen3", "qwen3_moe", "minimax_m2", "deepseek_v3", "deepseek_v32", "glm_5")
FEW = ("compressed_channel", "modelopt", "compressed_mxfp8")  # one of each kind


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [(128, 128), (16, 24), (1, 7), (1, 140), (150, 140)])
def test_float8_by_parts_is_the_naive_reference(block: tuple[int, int], dtype: torch.dtype) -> None:
    """Parts may begin and end at the borders of blocks or beside them."""
    weight, scales = quantise_float8(torch.randn(150, 140, generator=torch.Generator().manual_seed(1)), block)
    expected = naive_float8(weight, scales, block).to(dtype)
    borders = (0, 1, 16, 128, 130, 140)
    for (top, bottom), (left, right) in itertools.product(itertools.combinations(borders, 2), repeat=2):
        found = torch.empty(bottom - top, right - left, dtype=dtype)
        dequantise_float8(weight[None, top:bottom, left:right], scales[None], (top, left), block, found[None])
        assert torch.equal(found, expected[top:bottom, left:right])


@pytest.mark.parametrize("dtype", DTYPES)
def test_mxfp4_is_the_naive_reference_and_the_librarys(dtype: torch.dtype) -> None:
    blocks, scales = quantise_mxfp4(torch.randn(3, 96, 20, generator=torch.Generator().manual_seed(2)))
    blocks[0, 0, 0] = torch.arange(16, dtype=torch.uint8) * 17  # every number there is
    found = torch.empty(3, scales.shape[2] * 32, scales.shape[1], dtype=dtype)
    dequantise_mxfp4(blocks, scales, found.transpose(1, 2))
    assert torch.equal(found, naive_mxfp4(blocks, scales).to(dtype))
    assert torch.equal(found, convert_moe_packed_tensors(blocks, scales, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nvfp4_by_parts_is_the_naive_reference(dtype: torch.dtype, tmp_path: Path) -> None:
    """Parts may begin and end at the borders of groups and bytes, or beside them."""
    weight = torch.randn(150, 96, generator=torch.Generator().manual_seed(4))
    bytes_, scales, of_all = quantise_nvfp4(weight)
    bytes_[0, :16] = torch.arange(16, dtype=torch.uint8) * 17  # every number there is
    expected = naive_nvfp4(bytes_, scales, of_all).to(dtype)
    assert torch.allclose(expected[1:].float(), weight[1:], atol=0.7)
    tensors = {
        "a.weight": bytes_,
        "a.weight_scale": scales,
        "a.weight_scale_2": of_all,
        "a.input_scale": torch.tensor(0.5),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    read = dequantised(open_tensors([str(tmp_path / "a.safetensors")]), Nvfp4(), dtype, "base")
    assert list(read) == ["a.weight"]
    assert torch.equal(read["a.weight"][...], expected)
    assert torch.equal(read["a.weight"][3:140,], expected[3:140])
    for (top, bottom), (left, right) in itertools.product(
        [(0, 150), (127, 130)], itertools.combinations((0, 1, 15, 16, 24, 48, 95, 96), 2)
    ):
        assert torch.equal(read["a.weight"][top:bottom, left:right], expected[top:bottom, left:right])


@pytest.mark.parametrize("mixed", [False, True], ids=["alone", "mixed"])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "deepseek_v3"])
def test_a_base_in_nvfp4(family: str, mixed: bool, tmp_path: Path) -> None:
    """As ModelOpt publishes it, alone or with a format per linear; whole, and each rank's part."""
    quantised, dequantised = save_nvfp4(save_base(family, tmp_path / "plain", hidden_size=64), tmp_path, mixed=mixed)
    assert {each.dtype for each in tensors_of(quantised).values()} >= {torch.uint8, torch.float8_e4m3fn}
    for part in (lambda: None, lambda: Part(0, 2), lambda: Part(1, 2)):
        assert_equal(*(load_base(each, torch.bfloat16, CPU, part()) for each in (quantised, dequantised)))


@pytest.mark.parametrize("family", [*FLOAT8_FAMILIES, "gpt_oss"])
def test_a_base_holds_what_its_files_say(family: str, tmp_path: Path) -> None:
    """Whole, and each rank's part: weights and scales lie in different shards, cuts beside borders of blocks."""
    quantised, dequantised = save_quantised(family, tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        assert_equal(load_base(quantised, dtype, CPU), load_base(dequantised, dtype, CPU))
    for rank in range(2):
        whole, cut, part = load_base(dequantised, torch.bfloat16, CPU), Part(rank, 2), Part(rank, 2)
        cut.cut(whole.model)
        assert_equal(load_base(quantised, torch.bfloat16, CPU, part), whole)
        assert part.share == cut.share


@pytest.mark.parametrize(
    ("layout", "family"), [*((each, "qwen3") for each in LAYOUTS), *((each, "deepseek_v3") for each in FEW)]
)
def test_a_base_as_others_publish_float8(layout: str, family: str, tmp_path: Path) -> None:
    """Weights and logits are equal when loaded whole, by each rank, and streamed layer by layer by the first."""
    quantised, dequantised = save_float8(save_base(family, tmp_path / "plain"), tmp_path, LAYOUTS[layout])
    assert_read_alike(quantised, dequantised)


def test_fused_linears_in_float8(tmp_path: Path) -> None:
    """A scale goes with its row, whichever runs of rows make up a rank's part."""
    quantised, dequantised = save_float8(save_base("phi3", tmp_path / "plain"), tmp_path, LAYOUTS["fbgemm"])
    for rank in range(2):
        assert_equal(*(load_base(each, torch.bfloat16, CPU, Part(rank, 2)) for each in (quantised, dequantised)))


def test_kimi_k2_in_float8(tmp_path: Path) -> None:
    """Its config.json names its own model type."""
    quantised, dequantised = save_quantised("kimi_k2", tmp_path)
    edit_base(quantised, model_type="kimi_k2", auto_map={"AutoConfig": "configuration_deepseek.DeepseekV3Config"})
    assert_equal(*(load_base(each, torch.bfloat16, CPU) for each in (quantised, dequantised)))


def test_a_rank_reads_its_own_share_alone(tmp_path: Path) -> None:
    """Rank 0 does not see what is broken in the rows and experts of rank 1."""
    quantised, _ = save_quantised("deepseek_v3", tmp_path)
    tensors = tensors_of(quantised)
    for name, row in (("self_attn.q_b_proj", 40), ("mlp.experts.7.up_proj", 0)):
        key = f"model.layers.1.{name}.weight"
        edit_tensors(quantised, {key: broken(tensors[key], row)})
        load_base(quantised, torch.bfloat16, CPU, Part(0, 2))
        with pytest.raises(NonFiniteWeights, match=r"model\.layers\.1"):
            load_base(quantised, torch.bfloat16, CPU, Part(1, 2))
        edit_tensors(quantised, {key: tensors[key]})


def broken(weight: torch.Tensor, row: int) -> torch.Tensor:
    changed = weight.clone()
    changed[row] = torch.nan
    return changed


O_PROJ = "model.layers.1.self_attn.o_proj.weight"
SCALE, ZERO = f"{O_PROJ}_scale", f"{O_PROJ}_zero_point"
GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"


@pytest.mark.parametrize(
    ("family", "name", "change", "says"),
    [
        ("deepseek_v3", f"{O_PROJ}_scale_inv", None, f"lacks {O_PROJ}_scale_inv"),
        ("deepseek_v3", O_PROJ, None, f"has {O_PROJ}_scale_inv, but not the quantised weight"),
        (
            "deepseek_v3",
            O_PROJ,
            lambda each: each.bfloat16(),
            f"has {O_PROJ}_scale_inv, but not the quantised weight",
        ),
        ("deepseek_v3", f"{O_PROJ}_scale_inv", lambda each: each[:-1].clone(), f"has {O_PROJ}_scale_inv of F32"),
        ("deepseek_v3", f"{O_PROJ}_scale_inv", lambda each: each.to(torch.uint8), f"has {O_PROJ}_scale_inv of U8"),
        ("gpt_oss", f"{GATE_UP}_scales", None, f"lacks {GATE_UP}_scales"),
        ("gpt_oss", f"{GATE_UP}_blocks", None, f"has {GATE_UP}_scales, but not the MXFP4 blocks"),
        ("gpt_oss", f"{GATE_UP}_scales", lambda each: each[:, :-1].clone(), f"has {GATE_UP}_blocks of U8"),
        ("gpt_oss", f"{GATE_UP}_blocks", lambda each: each[..., :8].clone(), f"has {GATE_UP}_blocks of U8"),
        ("gpt_oss", f"{GATE_UP}_scales", lambda each: each.float(), f"has {GATE_UP}_blocks of U8"),
    ],
)
def test_what_does_not_fit_is_named(
    family: str, name: str, change: Callable[[torch.Tensor], torch.Tensor] | None, says: str, tmp_path: Path
) -> None:
    quantised, _ = save_quantised(family, tmp_path)
    edit_tensors(quantised, {name: change(tensors_of(quantised)[name]) if change else None})
    for part in (None, Part(1, 2)):
        with pytest.raises(UnsupportedBase, match=f"base {quantised}: {says}"):
            load_base(quantised, torch.bfloat16, CPU, part)


@pytest.mark.parametrize(
    ("layout", "changes", "says"),
    [
        ("compressed_tensor", {SCALE: torch.ones(48, 1)}, r"of F32 \[48, 1\], but .* 48 x 64 needs \[1, 1\]"),
        ("compressed_channel", {SCALE: torch.ones(1)}, r"of F32 \[1\], but .* 1 x 64 needs \[48, 1\]"),
        ("fbgemm", {SCALE: torch.ones(47, 1)}, rf"has {SCALE} of F32 \[47, 1\], but"),
        ("compressed_mxfp8", {SCALE: torch.ones(48, 1).byte()}, r"U8 \[48, 1\], but .* 1 x 32 needs \[48, 2\]"),
        ("modelopt", {SCALE: torch.ones(1).byte()}, rf"has {SCALE} of U8 .* of F32 or BF16"),
        ("modelopt", {SCALE: None}, f"lacks {SCALE}_inv or {SCALE}, the scales of a float8 weight"),
        ("modelopt", {O_PROJ: torch.ones(48, 64)}, f"has {SCALE}, but not the quantised weight that it scales"),
        ("modelopt", {f"{SCALE}_2": torch.ones(1)}, f"has {SCALE}_2, which is unknown for quantised weights"),
        ("modelopt", {ZERO: torch.ones(1)}, f"has {ZERO}, which is unknown for quantised weights"),
    ],
)  # fmt: skip
def test_scales_that_do_not_fit_are_named(
    layout: str, changes: dict[str, torch.Tensor | None], says: str, tmp_path: Path
) -> None:
    quantised, _ = save_float8(save_base("qwen3", tmp_path / "plain"), tmp_path, LAYOUTS[layout])
    edit_tensors(quantised, changes)
    for part in (None, Part(1, 2)):
        with pytest.raises(UnsupportedBase, match=f"base {quantised}: .*{says}.*; .*give the model in bfloat16"):
            load_base(quantised, torch.bfloat16, CPU, part)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({SCALE: None}, f"lacks {SCALE}, scales of an NVFP4 weight"),
        ({f"{SCALE}_2": None}, f"lacks {SCALE}_2, scales of an NVFP4 weight"),
        ({SCALE: torch.ones(48, 4)}, rf"{SCALE} of F32 \[48, 4\] .* which are not NVFP4"),
        ({f"{SCALE}_2": torch.ones(2)}, rf"{SCALE}_2 of F32 \[2\], which are not NVFP4"),
        ({O_PROJ: torch.ones(64, 64)}, rf"has {SCALE}(_2)?, but not the quantised weight that it scales"),
        ({ZERO: torch.ones(1)}, f"has {ZERO}, which is unknown for quantised weights"),
    ],
)
def test_nvfp4_that_does_not_fit_is_named(changes: dict[str, torch.Tensor | None], says: str, tmp_path: Path) -> None:
    quantised, _ = save_nvfp4(save_base("qwen3", tmp_path / "plain", hidden_size=64), tmp_path)
    edit_tensors(quantised, changes)
    with pytest.raises(UnsupportedBase, match=f"base {quantised}: .*{says}.*; .*give the model in bfloat16"):
        load_base(quantised, torch.bfloat16, CPU)


def test_experts_in_one_float8_tensor_are_refused_with_what_to_give(tmp_path: Path) -> None:
    """transformers holds them like this; the files are intact, so fetching them again would not help."""
    quantised, _ = save_quantised("qwen3_moe", tmp_path)
    stack = "model.layers.0.mlp.experts.down_proj"
    edit_tensors(
        quantised, {stack: torch.ones(4, 48, 40).to(torch.float8_e4m3fn), f"{stack}_scale_inv": torch.ones(4)}
    )
    with pytest.raises(
        UnsupportedBase, match=rf"{stack} of F8_E4M3 \[4, 48, 40\], many .* each expert's linears separately"
    ):
        load_base(quantised, torch.bfloat16, CPU)


@pytest.mark.parametrize(
    ("family", "name", "change", "error", "says"),
    [
        ("deepseek_v3", f"{O_PROJ}_scale_inv", lambda each: each * torch.nan, NonFiniteWeights, O_PROJ),
        ("gpt_oss", f"{GATE_UP}_scales", lambda each: each | 255, NonFiniteWeights, GATE_UP),  # NaN in e8m0
        ("deepseek_v3", O_PROJ, lambda each: each[:32].clone(), UnsupportedBase, f"other shapes .*{O_PROJ}"),
        ("gpt_oss", f"{GATE_UP}_blocks", lambda each: each[:4].clone(), UnsupportedBase, f"other shapes .*{GATE_UP}"),
    ],
)
def test_unknown_weights_are_named(
    family: str,
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    error: type[MintError],
    says: str,
    tmp_path: Path,
) -> None:
    """NaN, and shapes that agree with each other but not with config.json."""
    quantised, _ = save_quantised(family, tmp_path)
    tensors = tensors_of(quantised)
    changes: dict[str, torch.Tensor | None] = {name: change(tensors[name])}
    if name == O_PROJ:
        changes[f"{O_PROJ}_scale_inv"] = tensors[f"{O_PROJ}_scale_inv"][: 32 // BLOCK[0]].clone()
    if name == f"{GATE_UP}_blocks":
        changes[f"{GATE_UP}_scales"] = tensors[f"{GATE_UP}_scales"][:4].clone()
    edit_tensors(quantised, changes)
    with pytest.raises(error, match=says):
        load_base(quantised, torch.bfloat16, CPU)


def test_an_expert_unlike_the_others_is_named(tmp_path: Path) -> None:
    """Its scales fit it, but it does not fit the other experts."""
    quantised, _ = save_quantised("deepseek_v3", tmp_path)
    name, tensors = "model.layers.1.mlp.experts.5.up_proj.weight", tensors_of(quantised)
    rows, scale = 2 * BLOCK[0], f"{name}_scale_inv"
    edit_tensors(quantised, {name: tensors[name][:rows].clone(), scale: tensors[scale][:2].clone()})
    for part in (None, Part(1, 2)):
        with pytest.raises(
            UnsupportedBase, match=rf"experts\.0\.up_proj.weight of \[40, 48\], but {name} of \[32, 48\]"
        ):
            load_base(quantised, torch.bfloat16, CPU, part)


@pytest.mark.parametrize("part", [None, Part(1, 2)], ids=["whole", "a rank's"])
def test_layers_that_the_model_does_not_have_are_not_read(part: Part | None, tmp_path: Path) -> None:
    """DeepSeek-V3's files have one more layer, which predicts several tokens."""
    quantised, _ = save_quantised("deepseek_v3", tmp_path)
    for file in quantised.glob("*.safetensors"):
        tensors = load_file(file)
        more = {
            f"model.layers.3.{name[15:]}": each for name, each in tensors.items() if name[:15] == "model.layers.2."
        }
        save_file(tensors | {name: each.clone() for name, each in more.items()}, file, {"format": "pt"})
    found = weights(load_base(quantised, torch.bfloat16, CPU, part))
    assert any(name.startswith("model.layers.2.") for name in found)
    assert not any(name.startswith("model.layers.3.") for name in found)


def mixture(*algorithms: str) -> dict[str, Any]:
    layers = {f"model.layers.{at}.mlp": {"quant_algo": each} for at, each in enumerate(algorithms)}
    return {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantised by 'gptq', which is not read; give the model in bf"),
        ({"quant_method": ["fp8"]}, r"quantised by \['fp8'\], which is not read"),
        ({"quant_method": "compressed-tensors"}, "quantised by 'compressed-tensors' with weights: none"),
        (compressed(type="int", strategy="channel"), "weights: int of 8 bits with a scale a channel as 'float"),
        (compressed(num_bits=4, strategy="group", group_size=16), "weights: float of 4 bits with a scale a group"),
        (compressed(strategy="tensor", symmetric=False), "with a scale a tensor, not symmetric, which"),
        (compressed(strategy="attn_head"), "with a scale a attn_head, which is not read"),
        (compressed(strategy="group", group_size=-1), "with a scale a group, which is not read"),
        (compressed(strategy="block", block_structure="128x128"), "not known .*block_structure"),
        (
            compressed(strategy="tensor") | {"transform_config": {"config_groups": {}}},
            "turned before they are rounded",
        ),
        (compressed(strategy="tensor") | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        (compressed(strategy="tensor") | {"config_groups": [1]}, "not known"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}, "quantised by 'modelopt' as 'NVFP4_AWQ'"),
        (NVFP4 | {"group_size": 32}, "quantised by 'modelopt' as 'NVFP4' with a scale for 32, which is not read"),
        (mixture("FP8", "W4A8_AWQ"), "quantised by 'modelopt' as 'MIXED_PRECISION' of W4A8_AWQ, which is not read"),
        (mixture(), "quantised by 'modelopt' as 'MIXED_PRECISION' of nothing, which is not read"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e5m2"}, "'fp8' of kind 'e5m2'"),
        ({"quant_method": "fp8", "fmt": "float8_e4m3fnuz"}, "'fp8' of kind 'float8_e4m3fnuz'"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, r"in blocks of \[128, 0\]"),
        ({}, "float8 weights"),
        ("fp8", "quantised by None"),
    ],
)
def test_what_is_not_read_says_what_to_give(told: Any, says: str, tmp_path: Path) -> None:
    quantised, _ = save_quantised("qwen3", tmp_path)
    edit_base(quantised, quantization_config=told)
    with pytest.raises(UnsupportedBase, match=f"base {quantised}: .*{says}"):
        load_base(quantised, torch.bfloat16, CPU)
