"""Whole engines over bases in float8, MXFP8, MXFP4 and NVFP4: answers are PEFT's own over what their files hold."""

from pathlib import Path

import pytest

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
