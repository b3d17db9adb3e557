"""Whole engines over bases in block float8 and in MXFP4: answers are PEFT's own over what their files hold."""

from pathlib import Path

import pytest

from tests.engine.test_families_served import check_answers
from tests.engine.test_quantised import save_quantised


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss"])
async def test_answers_are_pefts(family: str, ranks: int, tmp_path: Path) -> None:
    """As of a base that was dequantised before, by any number of ranks."""
    quantised, dequantised = save_quantised(family, tmp_path)
    await check_answers(family, quantised, dequantised, tmp_path, ranks)
