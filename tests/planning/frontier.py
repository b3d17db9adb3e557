"""The configurations of frontier bases, and of one whose linears are fused, as in their config.json files.

Kimi-K2: moonshotai/Kimi-K2-Instruct (arXiv 2507.20534, table 2). DeepSeek-V3.2: deepseek-ai/DeepSeek-V3.2-Exp
(arXiv 2512.02556). GLM-5: zai-org/GLM-5 and the table of its report. Qwen3-30B-A3B: arXiv 2505.09388.
gpt-oss-120b: openai/gpt-oss-120b (arXiv 2508.10925, table 1). Phi-3-mini: arXiv 2404.14219, section 2, and the
defaults of transformers' Phi3Config. Gemma-3-4b: google/gemma-3-4b-it; other fields default to Gemma3TextConfig's.
"""

from typing import Any

_LATENT: dict[str, Any] = {
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048, "attention_bias": False, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
KIMI_K2: dict[str, Any] = _LATENT | {
    "model_type": "kimi_k2", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
    "num_attention_heads": 64, "num_key_value_heads": 64, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "v_head_dim": 128, "n_routed_experts": 384, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "vocab_size": 163840, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
}  # fmt: skip
DEEPSEEK_V32: dict[str, Any] = _LATENT | {
    "model_type": "deepseek_v32", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "v_head_dim": 128, "n_routed_experts": 256, "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4,
    "vocab_size": 129280, "max_position_embeddings": 163840, "index_head_dim": 128, "index_n_heads": 64,
    "index_topk": 2048,
}  # fmt: skip
GLM_5: dict[str, Any] = _LATENT | {
    "model_type": "glm_moe_dsa", "hidden_size": 6144, "intermediate_size": 12288, "num_hidden_layers": 78,
    "num_attention_heads": 64, "num_key_value_heads": 64, "q_lora_rank": 2048, "qk_nope_head_dim": 192,
    "v_head_dim": 256, "n_routed_experts": 256, "first_k_dense_replace": 3, "n_group": 1, "topk_group": 1,
    "vocab_size": 154880, "max_position_embeddings": 202752, "index_head_dim": 128, "index_n_heads": 32,
    "index_topk": 2048,
}  # fmt: skip
QWEN3_30B_A3B: dict[str, Any] = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "vocab_size": 151936, "max_position_embeddings": 40960, "tie_word_embeddings": False, "attention_bias": False,
}  # fmt: skip
GPT_OSS_120B: dict[str, Any] = {
    "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 128,
    "num_experts_per_tok": 4, "vocab_size": 201088, "max_position_embeddings": 131072, "attention_bias": True,
    "tie_word_embeddings": False,
}  # fmt: skip
PHI_3_MINI: dict[str, Any] = {
    "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096,
    "attention_bias": False, "tie_word_embeddings": False,
}  # fmt: skip
GEMMA_3_4B: dict[str, Any] = {
    "model_type": "gemma3", "mm_tokens_per_image": 256, "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }, "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "image_size": 896, "patch_size": 14, "vision_use_head": False,
    },
}  # fmt: skip
# moonshotai/Kimi-K2.5: transformers does not read the names of its vision fields; its language model is the same.
KIMI_K25: dict[str, Any] = {
    "model_type": "kimi_k25", "tie_word_embeddings": False, "text_config": KIMI_K2 | {
        "max_position_embeddings": 262144, "rope_scaling": {
            "type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4096, "mscale": 1.0,
            "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0,
        },
    }, "vision_config": {
        "vt_hidden_size": 1152, "vt_intermediate_size": 4304, "vt_num_hidden_layers": 27, "patch_size": 14,
        "init_pos_emb_height": 64, "init_pos_emb_width": 64, "merge_kernel_size": [2, 2], "mm_hidden_size": 1152,
    },
}  # fmt: skip
# Qwen2-7B, gemma-7b, Mixtral-8x7B-v0.1, granite-3.0-8b-base and SmolLM3-3B, as in their config.json files.
ORDINARY: dict[str, dict[str, Any]] = {
    "qwen2_7b": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 131072,
        "tie_word_embeddings": False, "sliding_window": 131072, "use_sliding_window": False,
    },
    "gemma_7b": {
        "model_type": "gemma", "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "vocab_size": 256000,
        "max_position_embeddings": 8192,
    },
    "mixtral_8x7b": {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
        "num_experts_per_tok": 2, "max_position_embeddings": 32768, "sliding_window": None,
        "tie_word_embeddings": False,
    },
    "granite_8b": {
        "model_type": "granite", "hidden_size": 4096, "intermediate_size": 12800, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 49155, "max_position_embeddings": 4096,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
    },
    "smollm3_3b": {
        "model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 128256, "max_position_embeddings": 65536,
        "attention_bias": False, "mlp_bias": False,
    },
}  # fmt: skip
# MiniMaxAI/MiniMax-M2, zai-org/GLM-4.5, zai-org/GLM-4.7-Flash and ByteDance-Seed/Seed-OSS-36B-Instruct.
ORDINARY |= {
    "minimax_m2": {
        "model_type": "minimax_m2", "hidden_size": 3072, "intermediate_size": 1536, "num_hidden_layers": 62,
        "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 200064,
        "num_local_experts": 256, "num_experts_per_tok": 8, "max_position_embeddings": 196608, "rotary_dim": 64,
        "use_qk_norm": True, "qk_norm_type": "per_layer", "num_mtp_modules": 3, "tie_word_embeddings": False,
        "quantization_config": {
            "activation_scheme": "dynamic", "fmt": "float8_e4m3fn", "quant_method": "fp8",
            "weight_block_size": [128, 128], "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
        },
    },
    "glm_4_5": {
        "model_type": "glm4_moe", "hidden_size": 5120, "intermediate_size": 12288, "num_hidden_layers": 92,
        "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151552,
        "n_routed_experts": 160, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 1536,
        "first_k_dense_replace": 3, "n_group": 1, "topk_group": 1, "attention_bias": True, "use_qk_norm": True,
        "max_position_embeddings": 131072, "num_nextn_predict_layers": 1, "tie_word_embeddings": False,
    },
    "glm_4_7_flash": {
        "model_type": "glm4_moe_lite", "hidden_size": 2048, "intermediate_size": 10240, "num_hidden_layers": 47,
        "num_attention_heads": 20, "num_key_value_heads": 20, "q_lora_rank": 768, "kv_lora_rank": 512,
        "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256, "vocab_size": 154880,
        "n_routed_experts": 64, "n_shared_experts": 1, "num_experts_per_tok": 4, "moe_intermediate_size": 1536,
        "first_k_dense_replace": 1, "max_position_embeddings": 202752, "num_nextn_predict_layers": 1,
        "tie_word_embeddings": False, "attention_bias": False,
    },
    "seed_oss_36b": {
        "model_type": "seed_oss", "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
        "num_attention_heads": 80, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 155136,
        "attention_bias": True, "attention_out_bias": False, "mlp_bias": False, "max_position_embeddings": 524288,
        "tie_word_embeddings": False,
    },
}  # fmt: skip
# baidu/ERNIE-4.5-0.3B-PT and -21B-A3B-PT, rednote-hilab/dots.llm1.inst, tencent/Hunyuan-7B-Instruct and
# -A13B-Instruct, ibm-granite/granite-3.0-3b-a800m-base and LGAI-EXAONE/EXAONE-4.0-32B.
_HUNYUAN: dict[str, Any] = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 32768, "attention_bias": False, "tie_word_embeddings": True,
    "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1},
}  # fmt: skip
ORDINARY |= {
    "ernie_45_03b": {
        "model_type": "ernie4_5", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 103424, "use_bias": False,
        "max_position_embeddings": 131072, "tie_word_embeddings": True,
    },
    "ernie_45_21b_a3b": {
        "model_type": "ernie4_5_moe", "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 28,
        "num_attention_heads": 20, "num_key_value_heads": 4, "vocab_size": 103424, "use_bias": False,
        "moe_num_experts": 64, "moe_k": 6, "moe_intermediate_size": 1536, "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1, "moe_layer_interval": 1, "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "dots_llm1": {
        "model_type": "dots1", "hidden_size": 4096, "intermediate_size": 10944, "num_hidden_layers": 62,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 152064, "n_routed_experts": 128,
        "n_shared_experts": 2, "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1, "sliding_window": None, "max_window_layers": 62,
        "max_position_embeddings": 32768, "attention_bias": False, "tie_word_embeddings": False,
    },
    "hunyuan_7b": _HUNYUAN | {"model_type": "hunyuan_v1_dense", "intermediate_size": 14336, "vocab_size": 128167},
    "hunyuan_a13b": _HUNYUAN | {
        "model_type": "hunyuan_v1_moe", "intermediate_size": 3072, "vocab_size": 128167, "num_experts": 64,
        "moe_topk": [8] * 32, "moe_intermediate_size": [3072] * 32, "num_shared_expert": [1] * 32,
    },
    "granite_3b_a800m": {
        "model_type": "granitemoe", "hidden_size": 1536, "intermediate_size": 512, "num_hidden_layers": 32,
        "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 49155, "num_local_experts": 40,
        "num_experts_per_tok": 8, "max_position_embeddings": 4096, "attention_bias": False,
        "tie_word_embeddings": True,
    },
    "exaone_4_32b": {
        "model_type": "exaone4", "hidden_size": 5120, "intermediate_size": 27392, "num_hidden_layers": 64,
        "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 102400,
        "max_position_embeddings": 131072, "sliding_window": 4096, "sliding_window_pattern": "LLLG",
        "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 16, "tie_word_embeddings": False,
    },
}  # fmt: skip
FRONTIER = {
    "kimi_k2": KIMI_K2, "deepseek_v32": DEEPSEEK_V32, "glm_5": GLM_5, "qwen3_30b_a3b": QWEN3_30B_A3B,
    "phi_3_mini": PHI_3_MINI,
}  # fmt: skip
