"""A base with routed experts decodes more requests together, so each expert gets as many rows as a dense base."""

import copy
from typing import Any

import pytest

from mint_engine.scheduling.places import MOST, limits_of
from mint_engine.scheduling.scheduler import Limits
from tests.engine.families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_rows_an_expert_as_a_dense_base_has(family: str) -> None:
    config: Any = FAMILIES[family]
    limits, usual = limits_of(config, matrices=False), Limits()
    if getattr(config, "num_experts_per_tok", None) is None:
        assert limits == usual
        return
    each, experts = config.num_experts_per_tok, getattr(config, "num_local_experts", None) or config.num_experts
    assert limits.running == usual.running * experts // each
    assert limits.step_tokens >= limits.running + 1


def test_never_beyond_the_most() -> None:
    config: Any = copy.deepcopy(FAMILIES["qwen3_moe"])
    config.num_experts = config.num_local_experts = 128
    assert limits_of(config, matrices=False).running == MOST


@pytest.mark.parametrize("family", FAMILIES)
def test_the_most_where_a_device_multiplies_whole_matrices(family: str) -> None:
    limits = limits_of(FAMILIES[family], matrices=True)
    assert limits.running == MOST
    assert limits.step_tokens > limits.running
