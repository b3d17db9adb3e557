"""Implementations of attention or experts named in a base's config are ignored, and so are adapters beside it."""

from pathlib import Path

import pytest
import torch

from mint_engine.build import build
from mint_engine.model.base import load_base
from mint_engine.preflight import check_small_files
from mint_engine.scheduling.scheduler import Limits
from tests.engine import saved_families
from tests.engine.made import edit_base
from tests.engine.running import save_base, settings_for

CPU = torch.device("cpu")


@pytest.mark.parametrize("named", ["flash_attention_2", "of_its_makers"])
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_experts_implementation"])
def test_implementations_named_in_a_config_are_ignored(key: str, named: str, tmp_path: Path) -> None:
    base = save_base(tmp_path)
    edit_base(base, **{key: named})
    check_small_files(settings_for(base), base, "a base")
    build(settings_for(base), base, Limits())


def test_an_adapter_beside_a_base_is_no_part_of_it(tmp_path: Path) -> None:
    """An adapter may be left there by training or merging in the base's folder; PEFT may be installed or not."""
    base = save_base(tmp_path)
    expected = load_base(base, torch.float32, CPU).model.state_dict()
    saved_families.save_adapter(base, base, 4, target_modules=["q_proj"])
    found = load_base(base, torch.float32, CPU).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], each) for name, each in expected.items())
