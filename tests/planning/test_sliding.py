"""Which layers have sliding windows: as in transformers' configurations, also where a config.json omits it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from mint_contracts.attention import windows
from mint_contracts.errors import UnsupportedBase
from mint_gateway.planning.config import GROUPED, read_shape
from tests.engine.families import MOE, SIZES, make_forward
from tests.planning.models import check_cache

LAYERS = 9
ASKED: dict[str, Any] = {"sliding_window": 33, "use_sliding_window": True}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", {}),
    ("qwen2", {"sliding_window": 33}),
    ("qwen2", ASKED),
    ("qwen2", ASKED | {"max_window_layers": 4}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}),
    ("qwen2", ASKED | {"sliding_window": None, "max_window_layers": 0}),
    ("qwen3", ASKED | {"max_window_layers": 8}),
    ("qwen3", ASKED | {"max_window_layers": 2, "layer_types": ["full_attention", *["sliding_attention"] * 8]}),
    ("qwen3_moe", MOE | ASKED | {"max_window_layers": 4}),  # a field that qwen3_moe ignores
    ("gemma2", {"sliding_window": 33, "sliding_window_pattern": 3}),  # and gemma2 ignores this one
    ("gemma3_text", {"sliding_window": 33}),
    ("gemma3_text", {"sliding_window": 33, "sliding_window_pattern": 2}),
    ("gpt_oss", {"num_local_experts": 4, "sliding_window_pattern": 3}),
    ("olmo3", {"sliding_window": 33}),
    ("smollm3", ASKED),
    ("smollm3", ASKED | {"no_rope_layer_interval": 2}),
    ("smollm3", ASKED | {"no_rope_layers": [1, 0, 0, 1, 1, 1, 0, 1, 1, 0]}),
    ("smollm3", {"use_sliding_window": True}),
    ("smollm3", {"sliding_window": 33}),
    ("mistral", {}),
    ("mixtral", {"sliding_window": 33, "num_local_experts": 4}),
    ("phi3", {"sliding_window": 33}),
]


def sizes(family: str, **more: Any) -> dict[str, Any]:
    return {"model_type": family} | SIZES | {"num_hidden_layers": LAYERS} | more


def config_of(fields: dict[str, Any]) -> Any:
    """Return the configuration that transformers reads from these fields."""
    return AutoConfig.for_model(
        fields["model_type"], **{name: fields[name] for name in fields if name != "model_type"}
    )


def seen(config: Any) -> tuple[int | None, ...]:
    """Return the window of each layer as the engine reads it; None for a layer that sees all."""
    return windows(lambda name: getattr(config, name, None), LAYERS)


@pytest.mark.parametrize(("family", "more"), CASES)
def test_a_plan_counts_the_bytes_of_an_engines_cache(family: str, more: dict[str, Any]) -> None:
    fields = sizes(family, **more)
    shape, forward = read_shape(fields), make_forward(config_of(fields), pages=19)
    assert shape.windows == seen(forward.base.config)
    check_cache(shape, forward.base.config)
    assert 4 * 16 * 20 * shape.cache_of(10**6, whole=False)[1] == forward.cache.bytes


@given(
    st.sampled_from(sorted(GROUPED)),
    st.fixed_dictionaries(
        {},
        optional={
            "sliding_window": st.sampled_from([None, 1, 33, 4096]),
            "use_sliding_window": st.booleans(),
            "max_window_layers": st.integers(0, 12),
            "sliding_window_pattern": st.integers(1, 12),
            "no_rope_layer_interval": st.integers(1, 12),
            "no_rope_layers": st.lists(st.integers(0, 1), min_size=LAYERS, max_size=LAYERS + 1),
            "layer_types": st.lists(
                st.sampled_from(["full_attention", "sliding_attention"]), min_size=LAYERS, max_size=LAYERS
            ),
        },
    ),
)
def test_windows_are_as_in_transformers_for_any_combination_of_fields(family: str, more: dict[str, Any]) -> None:
    fields = sizes(family, **MOE, **more)
    assert read_shape(fields).windows == seen(config_of(fields))


def test_a_list_that_does_not_cover_all_layers_is_named() -> None:
    with pytest.raises(UnsupportedBase, match="`no_rope_layers` names 2 layers where `num_hidden_layers` is 9"):
        read_shape(sizes("smollm3", no_rope_layers=[1, 0]))
