"""Tiny random bases of every family that is served, and transformers' own results for them with adapters merged."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    DeepseekV3Config,
    DeepseekV32Config,
    Dots1Config,
    Ernie4_5_MoeConfig,
    Ernie4_5Config,
    Exaone4Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Glm4MoeConfig,
    GlmMoeDsaConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    HunYuanDenseV1Config,
    HunYuanMoEV1Config,
    Kimi_K25Config,
    LlamaConfig,
    MiniMaxM2Config,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
)

from mint_engine.model.base import Base
from mint_engine.model.cache import Cache
from mint_engine.model.cache_shape import cache_shape, make_cache
from mint_engine.model.experts import route_shape
from mint_engine.model.forward import Forward
from mint_engine.model.modules import find_modules
from mint_engine.model.span import Span
from mint_engine.residency.slots import ABSENT, Slots
from tests.engine.copies import Lately, digest

CPU = torch.device("cpu")
VOCABULARY = 96
SIZES: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
    "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 1,
}  # fmt: skip
BY_MODULES: dict[str, Any] = {"head_dim": 24}  # a head size that the engine's own kernels do not support
LATENT: dict[str, Any] = SIZES | {
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 20, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12,
    "v_head_dim": 10, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 2, "topk_group": 1,
    "moe_intermediate_size": 40, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
# Many indexer heads: with few, most scores are zero, and which of several equal ones are taken is up to the library.
SPARSE: dict[str, Any] = LATENT | {"index_topk": 9, "index_n_heads": 24, "index_head_dim": 16}
del LATENT["head_dim"], SPARSE["head_dim"]
MOE: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
GROUPED: dict[str, Any] = {
    "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_shared_experts": 1, "n_group": 2,
    "topk_group": 1, "routed_scaling_factor": 1.5,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0,
    "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 64,
}  # fmt: skip
GRANITE: dict[str, Any] = {
    "attention_bias": True, "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
}  # fmt: skip
STRETCHED = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 1000.0}  # as Hunyuan's files say
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "smollm2": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=11),
    "gemma2": Gemma2Config(
        **SIZES,
        sliding_window=11,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=300.0,
        query_pre_attn_scalar=30,
    ),
    "gemma3": Gemma3TextConfig(
        **SIZES,
        sliding_window=11,
        query_pre_attn_scalar=30,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **MOE, norm_topk_prob=True),
    "phi3": Phi3Config(**SIZES),
    "seed_oss": SeedOssConfig(**SIZES, attention_bias=True, attention_out_bias=True, mlp_bias=True),
    "olmo2": Olmo2Config(**SIZES),
    "olmo3_one_key": Olmo3Config(**(SIZES | {"num_key_value_heads": 1}), sliding_window=11),
    "gpt_oss": GptOssConfig(
        **SIZES,
        num_local_experts=6,
        num_experts_per_tok=2,
        sliding_window=11,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "minimax_m2": MiniMaxM2Config(**SIZES, num_local_experts=8, num_experts_per_tok=3, rotary_dim=8),  # type: ignore[call-arg]
    "glm4_moe": Glm4MoeConfig(
        **SIZES,
        attention_bias=True,
        use_qk_norm=True,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=40,
    ),
    "dots1": Dots1Config(
        **SIZES,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_shared_experts=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=40,
        first_k_dense_replace=1,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        sliding_window=11,
        max_window_layers=1,
    ),
    "ernie4_5": Ernie4_5Config(**SIZES, use_bias=True),
    "ernie4_5_moe": Ernie4_5_MoeConfig(**SIZES, moe_num_experts=6, moe_k=2, moe_intermediate_size=40),
    "exaone4": Exaone4Config(**SIZES, sliding_window=11, sliding_window_pattern=2),
    "granite": GraniteConfig(**SIZES, **GRANITE),
    "granitemoe": GraniteMoeConfig(**SIZES, **GRANITE, num_local_experts=6, num_experts_per_tok=2),
    "hunyuan": HunYuanDenseV1Config(**SIZES, rope_parameters=STRETCHED),
    "hunyuan_moe": HunYuanMoEV1Config(**SIZES, rope_parameters=STRETCHED, num_experts=6, moe_topk=2),
    "deepseek_v3": DeepseekV3Config(**LATENT),
    "kimi_k2": DeepseekV3Config(**(LATENT | {"n_group": 1, "rope_parameters": YARN})),
    "deepseek_v3_plain_query": DeepseekV3Config(**(LATENT | {"q_lora_rank": None})),
    "deepseek_v32": DeepseekV32Config(**SPARSE),
    "glm_5": GlmMoeDsaConfig(**(SPARSE | {"indexer_types": ["full", "shared", "full"]})),
}
NONE_SHARED = DeepseekV3Config(**(LATENT | {"n_shared_experts": 0}))
VISION = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
# Like Gemma 3 of 4B and more: its decoder layers are in a model within the model, beside one for images.
GEMMA3_SEEING = Gemma3Config(
    text_config=FAMILIES["gemma3"].to_dict(),
    vision_config=VISION | {"image_size": 28, "patch_size": 14},
    mm_tokens_per_image=4,
)  # fmt: skip
# Like moonshotai/Kimi-K2.5, which transformers has only with its vision model.
KIMI_SEEING = Kimi_K25Config(
    text_config=FAMILIES["kimi_k2"].to_dict(),
    vision_config=VISION | {"pos_emb_height": 4, "pos_emb_width": 4},
    projection_hidden_size=32,
    image_token_id=90, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93,
    tie_word_embeddings=False,
)  # fmt: skip
SEEING: dict[str, PreTrainedConfig] = {"gemma3_seeing": GEMMA3_SEEING, "kimi_seeing": KIMI_SEEING}
ROUTED = (
    *("qwen3_moe", "gpt_oss", "minimax_m2", "glm4_moe", "deepseek_v3", "kimi_k2", "deepseek_v32", "glm_5", "dots1"),
    *("ernie4_5_moe", "granitemoe", "hunyuan_moe"),
)


_READ = Lately()


def kind_of(config: PreTrainedConfig) -> Any:
    """The transformers class that makes a model of this configuration."""
    return AutoModelForImageTextToText if config.model_type == "kimi_k25" else AutoModelForCausalLM


def read_model(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Return a saved base as transformers' own code reads it; equal files are read once."""

    def read() -> Any:
        return kind_of(AutoConfig.from_pretrained(base)).from_pretrained(base, dtype=dtype)

    return copy.deepcopy(_READ.get((digest(base), dtype), read))


def make_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return the same base each time; weights that are initialised to zero or one are random too."""
    torch.manual_seed(3)
    model = kind_of(config).from_config(copy.deepcopy(config), dtype=dtype)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, each in sorted((*model.named_parameters(), *model.named_buffers())):
            if "norm" in name or "bias" in name or "sinks" in name:
                each.add_(torch.randn(each.shape, generator=draw).to(each) * 0.2)
            elif "mlp.gate.weight" in name or "router.weight" in name or "gate.wg.weight" in name:
                each.copy_(torch.randn(each.shape, generator=draw).to(each) * 0.3)
    model.train(False)
    assert isinstance(model, PreTrainedModel)
    return model


def make_forward(
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype = torch.float32,
    pages: int = 180,
    lean: bool = False,
    routes: bool = False,
) -> Forward:
    """A Forward over this base with four empty slots."""
    model = make_model(config, dtype)
    base = Base(model, None, frozenset(), type(model).__name__, 256, VOCABULARY, dtype, CPU)  # type: ignore[arg-type]
    memory = Slots(find_modules(model), 4, 8, dtype, CPU)
    shape = cache_shape(base.config, whole=routes)
    cache = make_cache(shape, route_shape(model) if routes else None, pages, dtype, CPU)
    return Forward(base, memory, cache, lean=lean)


def span(cache: Cache, row: int, length: int, position: int, pages: Sequence[int], slot: int) -> Span:
    """A request's span; the pages of each further group of layers lie a fixed stride behind the first group's."""
    stride = cache.pages // len(cache.groups.windows)
    groups = range(1, len(cache.groups.windows))
    others = [[page + group * stride if page else page for page in pages] for group in groups]
    return Span(row, length, position, pages, slot, others)


def fill(slots: Slots, slot: int, rank: int, *, every: int = 1) -> None:
    """Put random weights into every module of a slot, or into every second one."""
    draw, at = torch.Generator().manual_seed(100 + slot), 0
    for module, (wide, high) in enumerate(slots.shapes):
        if (module + slot) % every:
            continue
        count = slots.experts[module] * rank * (wide + high)
        slots.memory[slot, at : at + count] = torch.randn(count, generator=draw).to(slots.dtype) * 0.15
        slots.places[module, slot], slots.ranks[module, slot], slots.scalings[module, slot] = at, rank, 1.5
        at += count
    slots.filled[slot] = at


@torch.no_grad()
def merge(model: PreTrainedModel, slots: Slots, slot: int) -> PreTrainedModel:
    """Add a slot's adapter to the model's own weights."""
    for at, (path, module) in enumerate(slots.modules.items()):
        part = slots.part(at, slot)
        if part is None or slots.places[at, slot] == ABSENT:
            continue
        count = slots.experts[at]
        a, b = (each.view(count, len(each) // count, each.shape[1]).float() for each in part)
        delta = torch.einsum("eri,ero->eoi", a, b) * float(slots.scalings[at, slot])  # [E, out, in]
        if not module.experts:
            model.get_parameter(f"{path}.weight").add_(delta[0])
            continue
        weight = model.get_parameter(module.part_of)
        if model.get_submodule(path.rpartition(".")[0]).is_transposed:
            weight[:, :, module.outputs].add_(delta.mT)
        else:
            weight[:, module.outputs].add_(delta)
    return model


@torch.no_grad()
def plain_logits(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """transformers' own logits [T, V], by eager attention."""
    model.set_attn_implementation("eager")
    logits: torch.Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()
    return logits
