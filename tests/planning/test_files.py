"""The size of a base's files, plain or quantised, including tensors that do not become resident."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.base import load_base
from mint_gateway.cli.plan import _read
from mint_gateway.planning.config import read_shape
from tests.engine.families import CPU
from tests.engine.integers import KIMI_IGNORES, PACKED, packed_config, save_packed
from tests.engine.quantised import LAYOUTS, save_float8, save_nvfp4, tensors_of
from tests.engine.saved_families import save_base
from tests.planning.frontier import DEEPSEEK_V32, GPT_OSS_120B, KIMI_K2, ORDINARY, QWEN3_30B_A3B
from tests.planning.planned import planned


@pytest.mark.parametrize(
    ("config", "published"),
    [
        # moonshotai/Kimi-K2-Instruct's files come to 1.03 TB, openai/gpt-oss-120b's to 65.2 GB.
        (KIMI_K2 | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, 1.03e12),
        (GPT_OSS_120B | {"quantization_config": {"quant_method": "mxfp4"}}, 65.2e9),
        # moonshotai/Kimi-K2-Thinking's to 594 GB.
        (KIMI_K2 | {"quantization_config": packed_config(*KIMI_IGNORES, strategy="group", group_size=32)}, 594e9),
    ],
    ids=["float8", "mxfp4", "packed"],
)
def test_a_base_that_is_published_quantised_is_held_in_bfloat16(config: dict[str, Any], published: float) -> None:
    """Its files are smaller; everything else is planned as for the base in bfloat16."""
    found, plain = planned(config), planned({**config, "quantization_config": None})
    assert found.files == pytest.approx(published, rel=0.01)
    assert plain.files == 2 * plain.parameters
    assert plain.weights == plain.files + 2 * read_shape(config).float32_parameters
    assert msgspec.structs.replace(found, files=plain.files) == plain
    assert found.refusal == ""


def test_layers_for_predicting_further_tokens_count_only_in_the_files() -> None:
    """DeepSeek-V3 has 671 billion parameters, its files 685 billion (its README.md); that layer is as the last."""
    config = DEEPSEEK_V32 | {"num_nextn_predict_layers": 1}
    found, plain = planned(config), planned(DEEPSEEK_V32)
    assert found.files / 2 == pytest.approx(685e9, rel=0.005)
    layer = planned(DEEPSEEK_V32 | {"num_hidden_layers": 62}).parameters - plain.parameters
    doubled = 2 * 129280 * 7168 + 2 * 7168**2 + 3 * 7168
    assert found.files - plain.files == pytest.approx(2 * (layer + doubled), abs=2 * 10_000)  # norms of latents
    assert msgspec.structs.replace(found, files=plain.files) == plain
    quantised = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    assert planned(config | quantised).files - planned(DEEPSEEK_V32 | quantised).files < 0.6 * (
        found.files - plain.files
    )


UNREAD = ("input_scale", "input_scale_ub", "activation_scale", "k_scale", "v_scale", "e_score_correction_bias")


def published(folder: Path) -> int:
    """Return the bytes of a folder's tensors, without those that are not read or are not parameters.

    Scales of float8 and of whole weights count four bytes each, and the two sizes of a packed weight eight each.
    """
    tensors, total = tensors_of(folder), 0
    for name, each in tensors.items():
        path, _, kind = name.rpartition(".")
        beside = kind.startswith("weight_")
        if kind == "weight_shape":
            total += 8 * each.numel()
        elif (beside and f"{path}.weight_packed" in tensors) or each.dtype in (torch.uint8, torch.float8_e4m3fn):
            total += each.nbytes
        elif kind not in UNREAD:
            total += (4 if beside else 2) * each.numel()
    return total


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_planned_float8_files_are_as_large_as_those_on_disk(layout: str, tmp_path: Path) -> None:
    quantised, _ = save_float8(save_base("qwen3", tmp_path / "plain"), tmp_path, LAYOUTS[layout])
    assert planned(_read(quantised), 1).files == published(quantised)


def test_planned_nvfp4_files_are_as_large_as_those_on_disk(tmp_path: Path) -> None:
    quantised, _ = save_nvfp4(save_base("qwen3", tmp_path / "plain", hidden_size=64), tmp_path)
    assert planned(_read(quantised), 1).files == published(quantised)


@pytest.mark.parametrize("layout", sorted(PACKED))
def test_planned_packed_files_are_as_large_as_those_on_disk(layout: str, tmp_path: Path) -> None:
    layout_config = PACKED[layout]
    family, changes = ("deepseek_v3", {"num_nextn_predict_layers": 0}) if layout_config.within else ("qwen3", {})
    packed, _ = save_packed(save_base(family, tmp_path / "plain", **changes), tmp_path, layout_config)
    assert planned(_read(packed), 1).files == published(packed)


BESIDE = ("lm_head", "mlp.gate", "block_sparse_moe.gate")  # ends of the paths of heads and routers
NAMED = ["lm_head", "re:.*(mlp|block_sparse_moe).gate$"]


def in_numbers(plain: Path, folder: Path, also: tuple[str, ...]) -> Path:
    ignore = () if also else tuple(NAMED)
    return save_packed(plain, folder, replace(PACKED["w8a16"], ignore=ignore), also=also)[0]


def in_float8(plain: Path, folder: Path, also: tuple[str, ...]) -> Path:
    layout = LAYOUTS["compressed_channel"]
    return save_float8(plain, folder, layout, also=also, ignore=[] if also else NAMED)[0]


def in_modelopts(plain: Path, folder: Path, also: tuple[str, ...]) -> Path:
    layout = LAYOUTS["modelopt_channel"]
    return save_float8(plain, folder, layout, also=also, ignore=[] if also else ["lm_head", "*.gate"])[0]


def in_nvfp4(plain: Path, folder: Path, also: tuple[str, ...]) -> Path:
    ignore = [] if also else ["lm_head", "model.layers.*.gate"]
    return save_nvfp4(plain, folder, also=also, ignore=ignore)[0]


@pytest.mark.parametrize("save", [in_numbers, in_float8, in_modelopts, in_nvfp4])
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_heads_and_routers_are_quantised_only_in_the_files(
    family: str, save: Callable[[Path, Path, tuple[str, ...]], Path], tmp_path: Path
) -> None:
    """This needs a config.json that exempts neither; in an engine's memory they are plain, exact to the byte."""
    sizes = {"hidden_size": 64, "moe_intermediate_size": 48} if family == "qwen3_moe" else {"hidden_size": 64}
    folder, found = save_base(family, tmp_path / "plain", **sizes), []
    for at, also in enumerate((BESIDE, ())):
        small = save(folder, tmp_path / str(at), also)
        found.append(planned(_read(small), 1))
        assert found[at].files == published(small)
        held = load_base(small, torch.bfloat16, CPU).model.parameters()
        assert found[at].weights == sum(each.nbytes for each in held)
    assert found[0].files < found[1].files


EVERY = [f"model.layers.{at}.self_attn.q_proj" for at in range(48)]


@pytest.mark.parametrize(
    ("targets", "ignore", "packed"),
    [
        (["Linear"], ["lm_head", "re:.*mlp.gate$"], (48, 48)),
        (["Linear"], ["re:.*self_attn.*"], (0, 48)),
        (["Linear"], ["re:model\\.layers\\.[0-9]\\..*"], (38, 38)),
        (["Linear"], EVERY[1:], (1, 48)),
        (["Linear"], [each.replace("model.", "model.language_model.") for each in EVERY[:3]], (45, 48)),
        (["Linear"], ["q_proj", "re:q_proj", "re:.*vision_tower.*q_proj"], (48, 48)),
        (["re:.*mlp.experts.*", EVERY[7]], [], (1, 48)),
        ([], [], (0, 0)),
    ],
)
def test_modules_that_a_config_exempts_are_plain(
    targets: list[str], ignore: list[str], packed: tuple[int, int]
) -> None:
    """`packed` is the number of the 48 layers with packed queries, and with packed experts.

    Exemptions are by kinds of modules, by names, or by patterns of names."""
    quantisation = packed_config(*ignore, strategy="channel", num_bits=8)
    quantisation["config_groups"]["group_0"]["targets"] = targets
    linears = {each.name: each for each in read_shape(QWEN3_30B_A3B | {"quantization_config": quantisation}).linears}
    found = [48 - 48 * linears[name].plain // linears[name].count for name in ("q_proj", "down_proj")]
    assert found == list(packed)


@pytest.mark.parametrize(
    ("ignored", "plain"),
    [
        ("re:.*block_sparse_moe.gate$", {"gate"}),
        ("re:.*block_sparse_moe.experts.*w1$", {"gate_proj"}),
        ("re:.*block_sparse_moe.experts.*w3$", {"up_proj"}),
        ("re:.*block_sparse_moe.experts.*w2$", {"down_proj"}),
        ("re:.*mlp.*", {"gate", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_mixtrals_linears_go_by_the_names_in_its_files_too(ignored: str, plain: set[str]) -> None:
    """Also by the names that other bases use for the same linears, and by transformers' names."""
    quantisation = packed_config("lm_head", ignored, strategy="channel", num_bits=8)
    shape = read_shape(ORDINARY["mixtral_8x7b"] | {"quantization_config": quantisation})
    counted = {each.name: each for each in (*shape.linears, *shape.beside) if each.count}
    assert {name for name, each in counted.items() if each.plain == each.count} == plain


def test_an_invalid_pattern_is_named() -> None:
    quantisation = packed_config("re:*", strategy="channel")
    with pytest.raises(
        UnsupportedBase,
        match=r"config.json: has missing or invalid values: the pattern '\*' is not a valid regular expression",
    ):
        read_shape(QWEN3_30B_A3B | {"quantization_config": quantisation})


def test_files_that_no_engine_reads_say_so() -> None:
    config = KIMI_K2 | {"quantization_config": {"quant_method": "compressed-tensors"}}
    found, plain = planned(config), planned(KIMI_K2)
    assert (
        "quantised by 'compressed-tensors' with weights: none, which is not read; give the model in bfloat16"
        in found.refusal
    )
    assert found.files == 0
    assert msgspec.structs.replace(found, refusal="", files=plain.files) == plain
