"""What own kernels take is planned where the engine has them: for which bases, and how much."""

from contextlib import nullcontext
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    DeepseekV3Config,
    DeepseekV32Config,
    Dots1Config,
    Glm4MoeConfig,
    LlamaConfig,
    Phi3Config,
    Qwen3MoeConfig,
)

from mint_engine.model.lean_layers import latent_queries
from mint_engine.model.llama_like import Unlike, check_config
from mint_gateway.planning.config import read_shape
from mint_gateway.planning.devices import DEVICES
from mint_gateway.planning.fit import Mix, hold
from tests.engine.families import GROUPED, LATENT, MOE, SIZES, SPARSE, make_forward
from tests.planning.test_shape import told_by

EVER = 1 << 20  # tokens of the longest requests
# In the kernels' panels of 48 outputs, so that none is padded.
PANELS = SIZES | {"num_key_value_heads": 1, "intermediate_size": 96}
LATENT_PANELS = PANELS | GROUPED | {
    "num_key_value_heads": 4, "q_lora_rank": 40, "kv_lora_rank": 48, "qk_rope_head_dim": 8, "qk_nope_head_dim": 40,
    "v_head_dim": 48, "first_k_dense_replace": 1, "head_dim": 8,
}  # fmt: skip
SPARSE_PANELS = LATENT_PANELS | {"index_n_heads": 24, "index_head_dim": 24, "index_topk": 9}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3_moe", "glm4_moe", "dots1", "deepseek_v3", "deepseek_v32"])
def test_what_own_kernels_lay_out_anew_is_counted_too(family: str, tied: bool) -> None:
    """All that a lean pass holds: its modules' weights, and their copies; experts are used where they lie."""
    told = {
        "llama": LlamaConfig(**PANELS),
        "phi3": Phi3Config(**PANELS),
        "qwen3_moe": Qwen3MoeConfig(**PANELS, **MOE),
        "glm4_moe": Glm4MoeConfig(**PANELS, **GROUPED, first_k_dense_replace=1),
        "dots1": Dots1Config(**PANELS, **GROUPED, first_k_dense_replace=1, sliding_window=None),
        "deepseek_v3": DeepseekV3Config(**LATENT_PANELS),
        "deepseek_v32": DeepseekV32Config(**SPARSE_PANELS),
    }[family]
    told.tie_word_embeddings = tied
    forward = make_forward(told, lean=True)
    assert forward.compute.startswith("lean")
    llama = forward._pass._llama  # type: ignore[union-attr]
    linears = [llama.head]
    for layer in llama.layers:
        own = layer.network
        linears += [layer.qkv, layer.output] + ([own.gate_up, own.down] if own is not None else [])
        linears += [*latent_queries(layer), *((*layer.latent.keys, *layer.latent.values) if layer.latent else ())]
    held = sum(each.numel() for each in (*forward.base.model.parameters(), *(each.weight for each in linears)))
    shape, mix = read_shape(told_by(told)), Mix(1, 8, "all", 1, 16)
    wide = 2 * shape.wide_parameters  # routers, which stay in float32
    for device, dtype, expected in (
        ("cpu", "float32", 4 * held),
        ("cpu", "bfloat16", 2 * held + wide),
        ("cpu", "float16", 2 * (shape.parameters + shape.wide_in_float16) + wide),  # of which there are no kernels
        ("h100", "bfloat16", 2 * shape.parameters + wide),
    ):
        [found] = hold(shape, DEVICES[device], 1, mix, dtype)
        assert found.weights == expected


@pytest.mark.parametrize(
    ("family", "more", "most"),
    [
        ("mistral", {}, 4096),  # over which it slides unless told otherwise
        ("mistral", {"use_sliding_window": False}, 4096),  # of which it knows nothing
        ("mistral", {"layer_types": ["full_attention"] * 3}, 4096),
        ("mistral", {"sliding_window": None}, EVER),
        ("mixtral", {"sliding_window": 512, "num_local_experts": 4}, 512),
        ("qwen2", {"sliding_window": 4096}, EVER),
        ("qwen2", {"sliding_window": 4096, "use_sliding_window": True}, EVER),  # from the 29th layer on
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}, 4096),
        ("qwen3", {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 0}, 100),
        ("qwen3_moe", {"sliding_window": 100, "use_sliding_window": True}, 100),
        ("phi3", {}, EVER),
        ("phi3", {"sliding_window": 2047}, 2047),
        ("seed_oss", {}, EVER),
        ("glm4_moe", {}, EVER),
        ("deepseek_v3", LATENT, EVER),
        ("deepseek_v32", SPARSE, EVER),
        ("glm4_moe_lite", LATENT, EVER),
        ("glm_moe_dsa", SPARSE, EVER),
        ("dots1", {"sliding_window": 100, "max_window_layers": 1}, 100),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 0),
        ("gemma2", {}, 0),
    ],
)
def test_own_kernels_are_counted_on_where_the_engine_has_them(family: str, more: dict[str, Any], most: int) -> None:
    """For requests of up to so many tokens."""
    told = {key: each for key, each in SIZES.items() if not key.startswith("rope")} | more
    shape, config = read_shape({"model_type": family} | told), AutoConfig.for_model(family, **told)
    for context in (1, max(1, most), min(most + 1, EVER), EVER):
        lean = context <= most
        assert shape.is_lean(context) is lean
        with nullcontext() if lean else pytest.raises(Unlike):
            check_config(config, context)
