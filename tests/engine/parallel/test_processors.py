"""Ranks that choose experts, each by itself, compute on GPUs of one model: others round differently."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.files import find_files, read_config
from mint_engine.parallel import follow
from mint_engine.parallel.messages import Begin
from tests.engine.device_double import standing_in
from tests.engine.running import settings_for
from tests.engine.saved_families import save_base

OWN, OTHER = "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A node with one GPU."""
    with standing_in():
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 36, 1 << 36))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: OWN)
        yield


def admit(family: str, leaders: str, tmp_path: Path) -> None:
    """Admit a base to the second node's only rank."""
    base = save_base(family, tmp_path)
    settings = settings_for(base, device="cuda", tensor_parallel_size=2, nodes=2)
    begin = Begin(settings, str(base), "", 1, 2, 64, 1, leaders)
    follow._admit(begin, read_config(find_files(base))[0], "base b")


def test_a_gpu_of_another_model_than_the_leaders_is_refused(tmp_path: Path) -> None:
    why = f"^base b: needs ranks that choose .* computes on {OWN} and the leader on {OTHER}, which round differently"
    with pytest.raises(UnsupportedBase, match=why):
        admit("qwen3_moe", OTHER, tmp_path)


@pytest.mark.parametrize(("family", "leaders"), [("qwen3_moe", OWN), ("llama", OTHER)])
def test_the_same_model_and_bases_without_choices_are_not(family: str, leaders: str, tmp_path: Path) -> None:
    admit(family, leaders, tmp_path)
