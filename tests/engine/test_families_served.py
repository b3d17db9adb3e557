"""Complete engines over frontier families, from files to gRPC: answers equal PEFT's, solo and mixed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.files import find_files, read_config
from tests.engine.family_answers import check_answers
from tests.engine.saved_families import SERVED, save_base

SHARED = ("gemma3_seeing", "deepseek_v32")  # two ranks of others: in test_quantised_served and in parallel


@pytest.mark.parametrize(("name", "ranks"), [*((name, 1) for name in SERVED), *((name, 2) for name in SHARED)])
async def test_answers_are_pefts(name: str, ranks: int, tmp_path: Path) -> None:
    base = save_base(name, tmp_path / "base")
    await check_answers(name, base, base, tmp_path, ranks)


def tell(base: Path, **changes: Any) -> None:
    told = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(told | changes))


async def test_kimi_k2_is_served_by_deepseeks_code(tmp_path: Path) -> None:
    """Its config.json names its own model type and refers to custom code, which is not run."""
    base = save_base("kimi_k2", tmp_path / "base")
    served = shutil.copytree(base, tmp_path / "served")
    tell(served, model_type="kimi_k2", auto_map={"AutoConfig": "configuration_deepseek.DeepseekV3Config"})
    await check_answers("deepseek_v3", served, base, tmp_path, 1)


async def test_how_many_experts_a_token_has_may_be_told_of_every_layer(tmp_path: Path) -> None:
    """As Hunyuan-A13B does; adapters say nothing about it."""
    base = save_base("hunyuan_moe", tmp_path / "base")
    served = shutil.copytree(base, tmp_path / "served")
    tell(served, moe_topk=[2, 2, 2], moe_intermediate_size=[64] * 3)
    await check_answers("hunyuan_moe", served, base, tmp_path, 1)


@pytest.mark.parametrize("told", [[2, 1, 2], [2], []])
def test_another_number_of_experts_in_some_layers_is_refused(told: list[int], tmp_path: Path) -> None:
    base = save_base("hunyuan_moe", tmp_path / "base")
    tell(base, moe_topk=told)
    says = re.escape(f"has several numbers of experts per token, {told}, which is not supported")
    with pytest.raises(UnsupportedBase, match=says):
        read_config(find_files(base))
