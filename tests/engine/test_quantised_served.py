"""Complete engines over quantised bases: answers equal PEFT's over the dequantised weights."""

import json
from pathlib import Path

import pytest

from tests.engine.family_answers import check_answers
from tests.engine.integers import PACKED, save_packed
from tests.engine.quantised import LAYOUTS, edit_tensors, save_float8, save_nvfp4, save_quantised, tensors_of
from tests.engine.saved_families import save_base


@pytest.mark.parametrize(("family", "ranks"), [("deepseek_v3", 1), ("deepseek_v3", 2), ("gpt_oss", 1)])
async def test_answers_are_pefts(family: str, ranks: int, tmp_path: Path) -> None:
    """As over a base that was dequantised beforehand, with one rank or two."""
    quantised, dequantised = save_quantised(family, tmp_path)
    await check_answers(family, quantised, dequantised, tmp_path, ranks)


@pytest.mark.parametrize("layout", ["compressed_channel", "modelopt_mxfp8"])
async def test_answers_over_float8_as_others_publish_it(layout: str, tmp_path: Path) -> None:
    quantised, dequantised = save_float8(save_base("qwen3_moe", tmp_path / "plain"), tmp_path, LAYOUTS[layout])
    await check_answers("qwen3_moe", quantised, dequantised, tmp_path, 1)


async def test_answers_over_nvfp4_mixed_with_float8(tmp_path: Path) -> None:
    quantised, dequantised = save_nvfp4(
        save_base("qwen3_moe", tmp_path / "plain", hidden_size=64), tmp_path, mixed=True
    )
    await check_answers("qwen3_moe", quantised, dequantised, tmp_path, 1)


@pytest.mark.parametrize(
    ("family", "layout", "ranks"), [("deepseek_v3", "kimi", 1), ("qwen3_moe", "w4a16_reordered", 2)]
)
async def test_answers_over_packed_numbers(family: str, layout: str, ranks: int, tmp_path: Path) -> None:
    packed, plain = save_packed(save_base(family, tmp_path / "plain"), tmp_path, PACKED[layout])
    await check_answers(family, packed, plain, tmp_path, ranks)


@pytest.mark.parametrize(("ranks", "keep"), [(1, False), (1, True), (2, True)])
async def test_answers_over_kimi_k25_as_it_is_published(ranks: int, keep: bool, tmp_path: Path) -> None:
    """A vision model in INT4, whose text_config names another model type, its code and the quantisation."""
    base = save_base("kimi_seeing", tmp_path / "plain")
    names = {
        name: name.replace("language_model.model.blocks", "language_model.model.layers").removeprefix("model.")
        for name in tensors_of(base)
    }  # transformers writes layers as blocks again, and one name with an extra prefix
    held = tensors_of(base)
    edit_tensors(base, dict.fromkeys(held) | {new: held[name] for name, new in names.items()})
    packed, plain = save_packed(base, tmp_path, PACKED["kimi"])
    told = json.loads((packed / "config.json").read_text())
    code = {"model_type": "kimi_k2", "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}}
    told["text_config"] |= code | {"quantization_config": told.pop("quantization_config")}
    told["auto_map"] = {"AutoConfig": "configuration_kimi_k25.KimiK25Config"}
    (packed / "config.json").write_text(json.dumps(told))
    await check_answers("kimi_seeing", packed, plain, tmp_path, ranks, quantised_experts=keep)
