"""Tiny configurations of families with sliding windows that may be wider than a request's context."""

from typing import Any

from transformers import (
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tests.engine.families import MOE, SIZES

WINDOW = 48
ASKED: dict[str, Any] = {"use_sliding_window": True, "sliding_window": WINDOW}
SLIDING: dict[str, PreTrainedConfig] = {
    "mistral": MistralConfig(**SIZES, sliding_window=WINDOW),
    "mixtral": MixtralConfig(**SIZES, sliding_window=WINDOW, num_local_experts=4),
    "qwen2": Qwen2Config(**SIZES, **ASKED, max_window_layers=1),
    "qwen3": Qwen3Config(**SIZES, **ASKED, max_window_layers=0),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **MOE, **ASKED),
}
