"""The settings that an engine gives to the libraries that it loads, before it loads them."""

import os
from pathlib import Path

import pytest
import torch

from mint_engine.environment import confine

OWN, OLD = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
EXACT = "pinned_max_cached_size_mb:1"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment of the test's own, so that what `confine` sets ends with it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in (OWN, OLD):
        os.environ.pop(name, None)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {OWN: EXACT}),
        ({OWN: "max_split_size_mb:64"}, {OWN: f"max_split_size_mb:64,{EXACT}"}),
        ({OLD: "expandable_segments:True"}, {OLD: f"expandable_segments:True,{EXACT}"}),
        ({OWN: "pinned_max_cached_size_mb:512"}, {OWN: "pinned_max_cached_size_mb:512"}),
    ],
    ids=["nothing", "something else", "by its old name", "the same"],
)
def test_pinned_memory_is_what_is_asked_for_unless_a_user_says_otherwise(
    before: dict[str, str], after: dict[str, str], tmp_path: Path
) -> None:
    os.environ.update(before)
    for _ in range(2):  # a confined process may start another
        confine(tmp_path)
        assert {name: os.environ[name] for name in (OWN, OLD) if name in os.environ} == after


def test_torch_knows_the_setting() -> None:
    """torch refuses settings that it does not know."""
    torch._C._accelerator_setAllocatorSettings(EXACT)
    with pytest.raises(ValueError, match="pinned_max_cashed"):
        torch._C._accelerator_setAllocatorSettings("pinned_max_cashed_size_mb:1")
