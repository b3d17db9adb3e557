"""Memory of own kernels in plans: for which bases it is counted, and how much."""

from contextlib import nullcontext
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    DeepseekV3Config,
    DeepseekV32Config,
    Dots1Config,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4MoeConfig,
    GptOssConfig,
    LlamaConfig,
    MiniMaxM2Config,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    Qwen3MoeConfig,
)

from mint_engine.model.lean_layers import latent_queries
from mint_engine.model.llama_like import Unlike, check_config
from mint_gateway.planning.config import read_shape
from mint_gateway.planning.devices import DEVICES
from mint_gateway.planning.fit import Mix, hold
from mint_gateway.planning.ranks import share_out
from tests.engine.families import GROUPED, LATENT, MOE, SIZES, SPARSE, make_forward
from tests.planning.models import config_fields

EVER = 1 << 20  # tokens of the longest possible request
# Sizes that are multiples of the kernels' panels of 48 outputs, so that no panel is padded.
PANELS = SIZES | {"num_key_value_heads": 1, "intermediate_size": 96}
LATENT_PANELS = PANELS | GROUPED | {
    "num_key_value_heads": 4, "q_lora_rank": 40, "kv_lora_rank": 48, "qk_rope_head_dim": 8, "qk_nope_head_dim": 40,
    "v_head_dim": 48, "first_k_dense_replace": 1, "head_dim": 8,
}  # fmt: skip
SPARSE_PANELS = LATENT_PANELS | {"index_n_heads": 24, "index_head_dim": 24, "index_topk": 9}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "family",
    [
        *("llama", "phi3", "qwen3_moe", "glm4_moe", "dots1", "deepseek_v3", "deepseek_v32"),
        *("gemma2", "gemma3_text", "gpt_oss", "minimax_m2", "olmo3"),
    ],
)
def test_packed_copies_of_own_kernels_are_counted(family: str, tied: bool) -> None:
    """A lean pass holds its modules' weights and packed copies of them; experts are used in place."""
    config = {
        "llama": LlamaConfig(**PANELS),
        "phi3": Phi3Config(**PANELS),
        "qwen3_moe": Qwen3MoeConfig(**PANELS, **MOE),
        "glm4_moe": Glm4MoeConfig(**PANELS, **GROUPED, first_k_dense_replace=1),
        "dots1": Dots1Config(**PANELS, **GROUPED, first_k_dense_replace=1, sliding_window=None),
        "deepseek_v3": DeepseekV3Config(**LATENT_PANELS),
        "deepseek_v32": DeepseekV32Config(**SPARSE_PANELS),
        "gemma2": Gemma2Config(**PANELS),
        "gemma3_text": Gemma3TextConfig(**PANELS, sliding_window=11),
        "gpt_oss": GptOssConfig(**PANELS, num_local_experts=4, num_experts_per_tok=2, attention_bias=False),
        "minimax_m2": MiniMaxM2Config(**PANELS, num_local_experts=4, num_experts_per_tok=2),
        "olmo3": Olmo3Config(**PANELS),
    }[family]
    config.tie_word_embeddings = tied
    forward = make_forward(config, lean=True)
    assert forward.compute.startswith("lean")
    llama = forward._pass._llama  # type: ignore[union-attr]
    linears = [llama.head]
    for layer in llama.layers:
        own = layer.network
        linears += [layer.qkv, layer.output] + ([own.gate_up, own.down] if own is not None else [])
        linears += [*latent_queries(layer), *((*layer.latent.keys, *layer.latent.values) if layer.latent else ())]
    held = sum(each.numel() for each in (*forward.base.model.parameters(), *(each.weight for each in linears)))
    shape, mix = read_shape(config_fields(config)), Mix(1, 8, "all", 1, 16)
    wide = 2 * shape.float32_parameters  # for routers, which stay in float32
    for device, dtype, expected in (
        ("cpu", "float32", 4 * held),
        ("cpu", "bfloat16", 2 * held + wide),
        ("cpu", "float16", 2 * (shape.parameters + shape.wide_in_float16) + wide),  # no own kernels in float16
        ("h100", "bfloat16", 2 * shape.parameters + wide),
    ):
        [found] = hold(shape, DEVICES[device], 1, mix, dtype)
        assert found.weights == expected


@pytest.mark.parametrize(
    ("family", "more", "most"),
    [
        ("mistral", {}, EVER),
        ("mistral", {"use_sliding_window": False}, EVER),  # a field that mistral ignores
        ("mistral", {"layer_types": ["full_attention"] * 3}, 4096),  # windows apply nevertheless
        ("mistral", {"sliding_window": None}, EVER),
        ("mixtral", {"sliding_window": 512, "num_local_experts": 4}, EVER),
        ("qwen2", {"sliding_window": 4096}, EVER),
        ("qwen2", {"sliding_window": 4096, "use_sliding_window": True}, EVER),  # from the 29th layer on
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}, EVER),
        ("qwen3", {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 0}, EVER),
        ("qwen3_moe", {"sliding_window": 100, "use_sliding_window": True}, EVER),
        ("phi3", {"sliding_window": 2047}, EVER),
        ("seed_oss", {}, EVER),
        ("glm4_moe", {}, EVER),
        ("deepseek_v3", LATENT, EVER),
        ("deepseek_v32", SPARSE, EVER),
        ("glm4_moe_lite", LATENT, EVER),
        ("glm_moe_dsa", SPARSE, EVER),
        ("dots1", {"sliding_window": 100, "max_window_layers": 1}, EVER),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 0),
        ("gemma", {}, EVER),
        ("gemma2", {}, EVER),
        ("gemma3_text", {}, EVER),
        ("gemma3_text", {"rope_scaling": {"rope_type": "dynamic", "factor": 8.0}}, 0),
        ("gpt_oss", {"num_local_experts": 4}, EVER),
        ("minimax_m2", {"num_local_experts": 4}, EVER),
        ("olmo2", {}, EVER),
        ("olmo3", {}, EVER),
        ("exaone4", {"sliding_window": 33, "sliding_window_pattern": 2}, EVER),
        ("granite", {}, EVER),
        ("smollm3", {}, EVER),
        ("ernie4_5", {}, EVER),
        ("ernie4_5_moe", {"moe_num_experts": 4, "moe_intermediate_size": 48}, EVER),
        ("granitemoe", {"num_local_experts": 4}, EVER),
        ("hunyuan_v1_dense", {"rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0}}, EVER),
        ("hunyuan_v1_moe", {"num_experts": 4, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 0),
    ],
)
def test_own_kernels_are_planned_where_the_engine_has_them(family: str, more: dict[str, Any], most: int) -> None:
    """`most` is the longest request, and the longest example, that own kernels compute."""
    fields = {key: each for key, each in SIZES.items() if not key.startswith("rope")} | more
    shape, config = read_shape({"model_type": family} | fields), AutoConfig.for_model(family, **fields)
    for context in (1, max(1, most), min(most + 1, EVER), EVER):
        lean = context <= most
        assert shape.is_lean(context) is lean
        assert shape.trains_lean(context) is lean
        with nullcontext() if lean else pytest.raises(Unlike):
            check_config(config, context)


@pytest.mark.parametrize("family", ["olmo2", "minimax_m2"])
def test_ranks_pack_their_shares_also_where_norms_span_all_heads(family: str) -> None:
    config = {
        "olmo2": Olmo2Config(**PANELS),
        "minimax_m2": MiniMaxM2Config(**PANELS, num_local_experts=4, num_experts_per_tok=2),
    }[family]
    shape, mix = read_shape(config_fields(config)), Mix(1, 8, "all", 1, 16)
    for ranks in (1, 2):
        shares = share_out(shape, ranks)
        assert all(share.packed_parameters(16) for share in shares)
        held = sum(share.parameters + share.packed_parameters(16) + share.float32_parameters for share in shares)
        assert hold(shape, DEVICES["cpu"], ranks, mix, "bfloat16")[0].weights == 2 * held
