"""Tiny configurations that the lean training pass takes: dense ones, and ones of experts."""

from typing import Any

from transformers import (
    DeepseekV3Config,
    DeepseekV32Config,
    Ernie4_5_MoeConfig,
    Glm4MoeConfig,
    Glm4MoeLiteConfig,
    GlmMoeDsaConfig,
    GptOssConfig,
    GraniteMoeConfig,
    HunYuanMoEV1Config,
    LlamaConfig,
    MiniMaxM2Config,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
)

from tests.engine.families import GROUPED, STRETCHED
from tests.engine.lean_families import DENSE, MULTIPLIED, SIZES

TAKEN = DENSE | {"llama with biases": LlamaConfig(**SIZES, attention_bias=True, tie_word_embeddings=True)}
MOE: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LATENT: dict[str, Any] = SIZES | GROUPED | {
    "num_key_value_heads": SIZES["num_attention_heads"], "head_dim": 8, "q_lora_rank": 40, "kv_lora_rank": 24,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 16,
}  # fmt: skip
ROUTED: dict[str, PreTrainedConfig] = {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=6),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **MOE, norm_topk_prob=True),
    "glm4_moe": Glm4MoeConfig(**SIZES, **GROUPED, use_qk_norm=True, first_k_dense_replace=0),
    "glm4_moe with a dense layer": Glm4MoeConfig(**SIZES, **GROUPED, first_k_dense_replace=1),
    "deepseek_v3": DeepseekV3Config(**LATENT, first_k_dense_replace=1),
    "deepseek_v3, queries at once": DeepseekV3Config(
        **LATENT | {"q_lora_rank": None, "v_head_dim": 36},
        first_k_dense_replace=0,
        attention_bias=True,
        rope_interleave=False,
    ),
    "deepseek_v32, all of a past": DeepseekV32Config(
        **LATENT,
        first_k_dense_replace=1,
        index_topk=SIZES["max_position_embeddings"],
        index_n_heads=4,
        index_head_dim=16,
    ),
    "deepseek_v32": DeepseekV32Config(
        **LATENT, first_k_dense_replace=1, index_topk=9, index_n_heads=24, index_head_dim=16
    ),
    "glm_5": GlmMoeDsaConfig(
        **LATENT, mlp_layer_types=["dense", "sparse"], indexer_types=["full", "shared"], index_topk=9,
        index_n_heads=24, index_head_dim=32,
    ),
    "glm4_moe_lite": Glm4MoeLiteConfig(**LATENT, mlp_layer_types=["sparse"] * SIZES["num_hidden_layers"]),
    "qwen3_moe with a dense layer": Qwen3MoeConfig(**SIZES, **MOE, mlp_only_layers=[0]),
    "gpt_oss": GptOssConfig(
        **SIZES, num_local_experts=6, num_experts_per_tok=2, sliding_window=9,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "minimax_m2": MiniMaxM2Config(**SIZES, num_local_experts=6, num_experts_per_tok=2, rotary_dim=16),  # type: ignore[call-arg]
    "granite of experts": GraniteMoeConfig(**SIZES, **MULTIPLIED, num_local_experts=6, num_experts_per_tok=2),
    "ernie of experts": Ernie4_5_MoeConfig(
        **SIZES, moe_num_experts=6, moe_k=2, moe_intermediate_size=48, moe_layer_start_index=0
    ),
    "hunyuan of experts": HunYuanMoEV1Config(**SIZES, rope_parameters=STRETCHED, num_experts=6, moe_topk=2),
}  # fmt: skip
