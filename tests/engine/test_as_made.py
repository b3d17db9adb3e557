"""A base's config.json may name what its makers computed it with: that is not asked for here."""

import json
from pathlib import Path
from typing import Any

import pytest

from mint_engine.beforehand import check_small_files
from mint_engine.build import build
from mint_engine.scheduling.scheduler import Limits
from tests.engine.running import save_base, settings_for


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("named", ["flash_attention_2", "of_its_makers"])
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_experts_implementation"])
def test_whatever_its_makers_computed_with_it_is_computed_here(key: str, named: str, tmp_path: Path) -> None:
    base = save_base(tmp_path)
    edit_config(base, **{key: named})
    check_small_files(settings_for(base), base, "a base")
    build(settings_for(base), base, Limits())
