"""Whole engines over quantised bases: answers are PEFT's own over what their files hold."""

from pathlib import Path

import pytest

from tests.engine.integers import PACKED, save_packed
from tests.engine.quantised import LAYOUTS, save_float8, save_nvfp4
from tests.engine.saved_families import save_base
from tests.engine.test_families_served import check_answers
from tests.engine.test_quantised import save_quantised


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss"])
async def test_answers_are_pefts(family: str, ranks: int, tmp_path: Path) -> None:
    """As of a base that was dequantised before, by any number of ranks."""
    quantised, dequantised = save_quantised(family, tmp_path)
    await check_answers(family, quantised, dequantised, tmp_path, ranks)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("layout", ["compressed_channel", "modelopt_mxfp8"])
async def test_answers_over_float8_as_others_publish_it(layout: str, ranks: int, tmp_path: Path) -> None:
    quantised, dequantised = save_float8(save_base("qwen3_moe", tmp_path / "plain"), tmp_path, LAYOUTS[layout])
    await check_answers("qwen3_moe", quantised, dequantised, tmp_path, ranks)


async def test_answers_over_nvfp4_mixed_with_float8(tmp_path: Path) -> None:
    quantised, dequantised = save_nvfp4(
        save_base("qwen3_moe", tmp_path / "plain", hidden_size=64), tmp_path, mixed=True
    )
    await check_answers("qwen3_moe", quantised, dequantised, tmp_path, 2)


@pytest.mark.parametrize(
    ("family", "layout", "ranks"),
    [("deepseek_v3", "kimi", 1), ("deepseek_v3", "kimi", 2), ("qwen3_moe", "w4a16_reordered", 2)],
)
async def test_answers_over_packed_numbers(family: str, layout: str, ranks: int, tmp_path: Path) -> None:
    packed, plain = save_packed(save_base(family, tmp_path / "plain"), tmp_path, PACKED[layout])
    await check_answers(family, packed, plain, tmp_path, ranks)
