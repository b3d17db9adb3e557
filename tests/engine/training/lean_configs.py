"""Tiny configurations that the lean training pass takes: dense ones, and ones of experts."""

from typing import Any

from transformers import (
    DeepseekV3Config,
    DeepseekV32Config,
    Ernie4_5_MoeConfig,
    Ernie4_5Config,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4MoeConfig,
    Glm4MoeLiteConfig,
    GlmMoeDsaConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    HunYuanDenseV1Config,
    HunYuanMoEV1Config,
    LlamaConfig,
    MiniMaxM2Config,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
)

from tests.engine.families import GROUPED, STRETCHED
from tests.engine.training.scene import LLAMA, SIZES

MULTIPLIED: dict[str, Any] = {
    "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5,
}  # fmt: skip
TAKEN: dict[str, PreTrainedConfig] = {
    "llama": LLAMA,
    "llama with biases": LlamaConfig(**SIZES, attention_bias=True, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "phi3": Phi3Config(
        **SIZES,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    "seed_oss": SeedOssConfig(**SIZES, attention_bias=True, attention_out_bias=True, mlp_bias=True),
    "mistral, windows": MistralConfig(**SIZES, sliding_window=9),
    "gemma": GemmaConfig(**SIZES),
    "gemma2": Gemma2Config(
        **SIZES, sliding_window=9, attn_logit_softcapping=3.0, final_logit_softcapping=20.0, query_pre_attn_scalar=30
    ),
    "gemma3": Gemma3TextConfig(
        **SIZES, sliding_window=9, query_pre_attn_scalar=30, layer_types=["sliding_attention", "full_attention"]
    ),
    "olmo2": Olmo2Config(**SIZES),
    "olmo3": Olmo3Config(**SIZES, sliding_window=9, layer_types=["sliding_attention", "full_attention"]),
    "exaone4": Exaone4Config(**SIZES, sliding_window=9, layer_types=["sliding_attention", "full_attention"]),
    "smollm3": SmolLM3Config(**SIZES, pad_token_id=0, no_rope_layers=[1, 0]),
    "granite": GraniteConfig(**SIZES, **MULTIPLIED, attention_bias=True),
    "ernie": Ernie4_5Config(**SIZES, use_bias=True),
    "hunyuan": HunYuanDenseV1Config(**SIZES, rope_parameters=STRETCHED),
}  # fmt: skip
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
