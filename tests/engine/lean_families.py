"""Tiny configurations that the lean pass takes or leaves, in sizes that the engine's own kernels support."""

from typing import Any

from transformers import (
    DeepseekV3Config,
    DeepseekV32Config,
    Dots1Config,
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
    OlmoConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
)

from tests.engine.families import STRETCHED

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 128, "max_position_embeddings": 256,
    "initializer_range": 0.2,
}  # fmt: skip
ROUTED: dict[str, Any] = {
    "n_routed_experts": 12, "num_experts_per_tok": 3, "n_shared_experts": 1, "n_group": 4, "topk_group": 2,
    "moe_intermediate_size": 40, "routed_scaling_factor": 1.5,
}  # fmt: skip
LATENT: dict[str, Any] = SIZES | ROUTED | {
    "num_key_value_heads": 4, "kv_lora_rank": 48, "q_lora_rank": 40, "qk_nope_head_dim": 24, "qk_rope_head_dim": 16,
    "head_dim": 16, "v_head_dim": 20,
}  # fmt: skip
# Many indexer heads: with few, most scores are zero, and which of several equal ones are taken is up to the library.
SPARSE: dict[str, Any] = LATENT | {"index_topk": 19, "index_n_heads": 24, "index_head_dim": 32}
MULTIPLIED: dict[str, Any] = {
    "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5,
}  # fmt: skip
DEEP: dict[str, Any] = {"kv_lora_rank": 64, "qk_rope_head_dim": 32, "head_dim": 32}  # sizes for matrix registers
DENSE: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama3 rope": LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "phi-4": Phi3Config(
        **SIZES, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    "seed-oss": SeedOssConfig(**SIZES, attention_bias=True, attention_out_bias=True, mlp_bias=True),
    "mistral, windows": MistralConfig(**SIZES, sliding_window=21),
    "gemma": GemmaConfig(**SIZES),
    "gemma 2": Gemma2Config(
        **SIZES, sliding_window=21, attn_logit_softcapping=3.0, final_logit_softcapping=20.0, query_pre_attn_scalar=30
    ),
    "gemma 3": Gemma3TextConfig(
        **SIZES | {"num_hidden_layers": 3}, sliding_window=16, query_pre_attn_scalar=30,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "olmo 2": Olmo2Config(**SIZES),
    "olmo 3": Olmo3Config(
        **SIZES, sliding_window=21, layer_types=["sliding_attention", "full_attention"],
    ),
    "exaone 4": Exaone4Config(**SIZES, sliding_window=21, layer_types=["sliding_attention", "full_attention"]),
    "exaone 4, no windows": Exaone4Config(**SIZES, sliding_window=None, layer_types=["full_attention"] * 2),
    "smollm3": SmolLM3Config(**SIZES, pad_token_id=0, no_rope_layers=[1, 0]),
    "granite": GraniteConfig(**SIZES, **MULTIPLIED, attention_bias=True),
    "ernie 4.5": Ernie4_5Config(**SIZES, use_bias=True),
    "hunyuan": HunYuanDenseV1Config(**SIZES, rope_parameters=STRETCHED),
}  # fmt: skip
TAKEN = DENSE | {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=8, num_experts_per_tok=2, sliding_window=None),
    "qwen3 moe": Qwen3MoeConfig(
        **SIZES, num_experts=10, num_experts_per_tok=3, moe_intermediate_size=40, norm_topk_prob=False,
        decoder_sparse_step=2,
    ),
    "qwen3 moe, weights whole": Qwen3MoeConfig(
        **SIZES, num_experts=10, num_experts_per_tok=3, moe_intermediate_size=40, norm_topk_prob=True
    ),
    "glm-4.5": Glm4MoeConfig(
        **SIZES, **ROUTED, attention_bias=True, use_qk_norm=True, first_k_dense_replace=1,
    ),
    "dots.llm1": Dots1Config(
        **SIZES, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=2, n_group=1, topk_group=1,
        moe_intermediate_size=40, first_k_dense_replace=0, norm_topk_prob=False, routed_scaling_factor=2.5,
        sliding_window=None,
    ),
    "deepseek-v3": DeepseekV3Config(**LATENT, first_k_dense_replace=1),
    "deepseek-v3, queries at once": DeepseekV3Config(
        **LATENT | {"q_lora_rank": None, "kv_lora_rank": 64, "attention_bias": True}, rope_interleave=False
    ),
    "kimi-k2": DeepseekV3Config(
        **LATENT | DEEP | {"n_group": 1, "topk_group": 1}, first_k_dense_replace=0,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "deepseek-v3.2": DeepseekV32Config(**SPARSE, first_k_dense_replace=1),
    "deepseek-v3.2, all of a past": DeepseekV32Config(**SPARSE | {"index_topk": 256}, first_k_dense_replace=1),
    "glm-5": GlmMoeDsaConfig(
        **SPARSE | DEEP | {"num_hidden_layers": 3}, mlp_layer_types=["dense", "sparse", "sparse"],
        indexer_types=["full", "shared", "full"],
    ),
    "glm-4.7-flash": Glm4MoeLiteConfig(**LATENT, mlp_layer_types=["dense", "sparse"]),
    "mixtral, windows": MixtralConfig(**SIZES, num_local_experts=8, num_experts_per_tok=2, sliding_window=33),
    "gpt-oss": GptOssConfig(**SIZES, num_local_experts=8, num_experts_per_tok=3, sliding_window=17),
    "minimax-m2": MiniMaxM2Config(**SIZES, num_local_experts=8, num_experts_per_tok=3, rotary_dim=16),  # type: ignore[call-arg]
    "granite of experts": GraniteMoeConfig(**SIZES, **MULTIPLIED, num_local_experts=8, num_experts_per_tok=3),
    "ernie 4.5 of experts": Ernie4_5_MoeConfig(
        **SIZES, moe_num_experts=8, moe_k=3, moe_intermediate_size=40, moe_layer_start_index=1
    ),
    "hunyuan of experts": HunYuanMoEV1Config(**SIZES, rope_parameters=STRETCHED, num_experts=8, moe_topk=3),
}  # fmt: skip
LEFT = {"olmo": OlmoConfig(**SIZES), "gelu": LlamaConfig(**SIZES, hidden_act="gelu")}
