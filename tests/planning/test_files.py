"""What a base's files take: published in plain or quantised numbers, with all that is in them and not resident."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from mint_contracts.errors import UnsupportedBase
from mint_gateway.cli.plan import _read
from mint_gateway.planning.config import read_shape
from tests.engine.integers import (
    KIMI_IGNORES,
    PACKED,
    packed_config,
    packed_tensors,
    quantise_integers,
    save_packed,
)
from tests.engine.quantised import LAYOUTS, save_float8, save_nvfp4, tensors_of
from tests.engine.saved_families import save_base
from tests.planning.frontier import DEEPSEEK_V32, GPT_OSS_120B, KIMI_K2, QWEN3_30B_A3B
from tests.planning.planned import planned


@pytest.mark.parametrize(
    ("told", "published"),
    [
        # moonshotai/Kimi-K2-Instruct's files come to 1.03 TB, openai/gpt-oss-120b's to 65.2 GB.
        (KIMI_K2 | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, 1.03e12),
        (GPT_OSS_120B | {"quantization_config": {"quant_method": "mxfp4"}}, 65.2e9),
        # moonshotai/Kimi-K2-Thinking's to 594 GB.
        (KIMI_K2 | {"quantization_config": packed_config(*KIMI_IGNORES, strategy="group", group_size=32)}, 594e9),
    ],
    ids=["float8", "mxfp4", "packed"],
)
def test_a_base_that_is_published_quantised_is_held_in_bfloat16(told: dict[str, Any], published: float) -> None:
    """Its files are smaller; all else is as of the base in bfloat16."""
    found, plain = planned(told), planned({**told, "quantization_config": None})
    assert found.files == pytest.approx(published, rel=0.01)
    assert plain.files == 2 * plain.parameters
    assert plain.weights == plain.files + 2 * read_shape(told).wide_parameters
    assert msgspec.structs.replace(found, files=plain.files) == plain
    assert found.refusal == ""


def test_layers_for_predicting_further_tokens_are_in_the_files_alone() -> None:
    """DeepSeek-V3 is 671 billion parameters and 685 in its files (its README.md); a layer is as the last one."""
    told = DEEPSEEK_V32 | {"num_nextn_predict_layers": 1}
    found, plain = planned(told), planned(DEEPSEEK_V32)
    assert found.files / 2 == pytest.approx(685e9, rel=0.005)
    layer = planned(DEEPSEEK_V32 | {"num_hidden_layers": 62}).parameters - plain.parameters
    doubled = 2 * 129280 * 7168 + 2 * 7168**2 + 3 * 7168
    assert found.files - plain.files == pytest.approx(2 * (layer + doubled), abs=2 * 10_000)  # norms of latents
    assert msgspec.structs.replace(found, files=plain.files) == plain
    quantised = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    assert planned(told | quantised).files - planned(DEEPSEEK_V32 | quantised).files < 0.6 * (
        found.files - plain.files
    )


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_files_in_float8_come_to_what_lies_on_the_disk(layout: str, tmp_path: Path) -> None:
    """Whoever published them, with scales as numbers of four bytes; less what is not read."""
    quantised, _ = save_float8(save_base("qwen3", tmp_path / "plain"), tmp_path, LAYOUTS[layout])
    told, expected = LAYOUTS[layout], 0
    for name, each in tensors_of(quantised).items():
        if name.endswith(told.scale) and each.dtype != torch.uint8:
            expected += 4 * each.numel()
        elif not name.endswith(tuple(told.beside)):
            expected += each.numel() * (1 if each.dtype in (torch.uint8, torch.float8_e4m3fn) else 2)
    assert planned(_read(quantised), 1).files == expected


def test_files_in_nvfp4_come_to_what_lies_on_the_disk(tmp_path: Path) -> None:
    quantised, _ = save_nvfp4(save_base("qwen3", tmp_path / "plain", hidden_size=64), tmp_path)
    expected = 0
    for name, each in tensors_of(quantised).items():
        if name.endswith("weight_scale_2"):
            expected += 4
        elif not name.endswith("input_scale"):
            expected += each.numel() * (1 if each.dtype in (torch.uint8, torch.float8_e4m3fn) else 2)
    assert planned(_read(quantised), 1).files == expected


@pytest.mark.parametrize("layout", sorted(PACKED))
def test_packed_files_come_to_what_lies_on_the_disk(layout: str, tmp_path: Path) -> None:
    """To the byte, but for a weight's two sizes, which are counted in eight bytes each, and are in four by Kimi.

    And for what routers add to experts' scores, which is no parameter.
    """
    told = PACKED[layout]
    family, changes = ("deepseek_v3", {"num_nextn_predict_layers": 0}) if told.within else ("qwen3", {})
    packed, _ = save_packed(save_base(family, tmp_path / "plain", **changes), tmp_path, told)
    expected = 0
    for name, each in tensors_of(packed).items():
        if name.endswith(".weight_shape"):
            expected += 16
        elif not name.endswith("e_score_correction_bias"):
            expected += each.nbytes if ".weight_" in name else 2 * each.numel()
    assert planned(_read(packed), 1).files == expected


def test_packed_heads_and_routers_are_in_the_files_alone(tmp_path: Path) -> None:
    """Where a config.json exempts neither, in whole numbers of eight bits; in memory they are as all else is."""
    folder = save_base("qwen3_moe", tmp_path / "plain")
    layout = PACKED["w8a16"]
    sizes = []
    for at, ignore in enumerate((("lm_head", "re:.*mlp.gate$"), ())):
        packed, _ = save_packed(folder, tmp_path / str(at), replace(layout, ignore=ignore))
        sizes.append(planned(_read(packed), 1))
    plain, small = sizes
    expected = 0
    for name, each in tensors_of(folder).items():
        if name == "lm_head.weight" or name.endswith("mlp.gate.weight"):
            parts = packed_tensors("a", quantise_integers(each, layout), layout)
            expected += 2 * each.numel() - sum(part.nbytes for part in parts.values())
    assert expected > 0
    assert plain.files - small.files == expected
    assert plain.weights == small.weights


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
def test_what_a_config_exempts_is_in_plain_numbers(
    targets: list[str], ignore: list[str], packed: tuple[int, int]
) -> None:
    """Of 48 layers so many have queries packed, and experts: by kinds of modules, their names, or how these begin."""
    said = packed_config(*ignore, strategy="channel", num_bits=8)
    said["config_groups"]["group_0"]["targets"] = targets
    linears = {each.name: each for each in read_shape(QWEN3_30B_A3B | {"quantization_config": said}).linears}
    found = [48 - 48 * linears[name].plain // linears[name].count for name in ("q_proj", "down_proj")]
    assert found == list(packed)


def test_a_pattern_that_is_none_is_named() -> None:
    said = packed_config("re:*", strategy="channel")
    with pytest.raises(UnsupportedBase, match=r"config.json: lacks or garbles .*: the pattern '\*' is none"):
        read_shape(QWEN3_30B_A3B | {"quantization_config": said})


def test_files_that_no_engine_reads_say_so() -> None:
    told = KIMI_K2 | {"quantization_config": {"quant_method": "compressed-tensors"}}
    found, plain = planned(told), planned(KIMI_K2)
    assert (
        "quantised by 'compressed-tensors' with weights: none, which is not read; give the model in bfloat16"
        in found.refusal
    )
    assert found.files == 0
    assert msgspec.structs.replace(found, refusal="", files=plain.files) == plain
