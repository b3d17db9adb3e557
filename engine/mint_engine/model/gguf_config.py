"""What a GGUF file says of its base that transformers ignores: put into the base's configuration, or refused.

transformers takes sizes and weights from the file, and everything else from its family's defaults: the scaling of
rotary positions, attention windows and attention scales would silently differ from the base's. Keys mean what
llama.cpp, which writes these files, takes them to mean (src/llama-model.cpp).
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.gguf.reader import read_gguf_metadata

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.gguf_arrays import ArrayReader

# transformers asks for the names of all tensors that a family may have at each module of a model, and reads a file's
# complete head for each of its configuration, its tokenizer and its weights.
gguf.get_tensor_name_map = cache(gguf.get_tensor_name_map)
gguf.GGUFReader = ArrayReader  # type: ignore[misc]

# Gemma's largest models, known by their numbers of layers, scale scores by hidden size / heads; files do not say so.
_LARGEST = {"gemma2": 46, "gemma3_text": 62}
_CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
_EXPERT_SIZES = {
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
_SCALING = "rope.scaling."
_READ = frozenset({"type", "factor", "original_context_length", "finetuned"})  # fields of how positions are stretched
_FREQUENCIES = "rope_freqs.weight"  # divisors of the frequencies: Llama 3.1's way to stretch positions
# Architectures whose experts, or file heads, transformers does not read as llama.cpp writes them.
_OTHER_EXPERTS = frozenset({"gpt-oss", "llama", "llama4"})
_TURN_BY_LENGTH = ("rope_factors_long.weight", "rope_factors_short.weight")
_BIASED = {
    "attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj",
    "ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj",
}  # fmt: skip


def check_read(path: Path, subject: str) -> None:
    """Raise UnsupportedBase for a part of a base, and for experts that are not read, by its head alone."""
    metadata, _ = read_gguf_metadata(str(path))
    if (parts := metadata.get("split.count", 1)) > 1:
        raise UnsupportedBase(
            subject, f"is one of {parts} parts of a base; join them with llama-gguf-split --merge, and give that file"
        )
    architecture = metadata["general.architecture"]
    if architecture in _OTHER_EXPERTS and metadata.get(f"{architecture}.expert_count"):
        own = "OpenAI's own files in MXFP4, which are no larger" if architecture == "gpt-oss" else "safetensors"
        raise UnsupportedBase(
            subject,
            f"routes to experts as {architecture!r}, which is not read from a GGUF file; give the model as {own}",
        )


def complete(config: PreTrainedConfig, path: Path, subject: str) -> PreTrainedConfig:
    """Complete the configuration that transformers makes of a file's head with what it ignored.

    Raises UnsupportedBase for what no engine computes.
    """
    metadata, tensors = read_gguf_metadata(str(path))
    prefix = f"{metadata['general.architecture']}."
    fields = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    _stretch(config, fields, tensors, subject)
    _narrow(config, fields, subject)
    _scale(config, fields)
    _size_experts(config, fields)
    _end(config, metadata)
    return config


def _stretch(config: PreTrainedConfig, metadata: Mapping[str, Any], tensors: Sequence[str], subject: str) -> None:
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    of_all = rope.get("full_attention", rope)  # Gemma 3 stretches only the layers that see all tokens
    if of_all is rope and rope:
        _check_turned(config, metadata.get("rope.dimension_count"), rope, subject)
    if of_all and (base := metadata.get("rope.freq_base")):
        of_all["rope_theta"] = float(base)
    factor = float(metadata.get(f"{_SCALING}factor") or metadata.get("rope.scale_linear") or 1)
    kind = metadata.get(f"{_SCALING}type", "linear") if factor != 1 else "none"
    others = sorted(key for key in metadata if key.startswith(_SCALING) and key.removeprefix(_SCALING) not in _READ)
    by_length = sorted(set(tensors) & set(_TURN_BY_LENGTH))
    if kind not in ("none", "linear", "yarn") or (others and kind != "none") or by_length:
        named = ", ".join([*by_length, *others]) or kind
        raise UnsupportedBase(
            subject,
            f"stretches rotary positions by {named}, which is not read from GGUF; give the model as safetensors",
        )
    if kind == "none":
        return
    if not of_all:
        raise UnsupportedBase(
            subject, "stretches rotary positions, which its family does not have; get its files again"
        )
    of_all |= {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        first = metadata.get(f"{_SCALING}original_context_length") or config.max_position_embeddings
        of_all["original_max_position_embeddings"] = int(first)


def _check_turned(config: Any, turned: int | None, rope: Mapping[str, Any], subject: str) -> None:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    if turned and turned != int(size * share):
        raise UnsupportedBase(
            subject,
            f"rotates {turned} numbers of each head, but its family rotates {int(size * share)}; get its files again",
        )


def _narrow(config: PreTrainedConfig, metadata: Mapping[str, Any], subject: str) -> None:
    window, known = metadata.get("attention.sliding_window"), getattr(config, "sliding_window", None)
    if window and config.model_type == "phi3":  # all its layers slide
        config.sliding_window = int(window)
    elif isinstance(window, int) and window != known and window < config.max_position_embeddings:
        raise UnsupportedBase(
            subject, f"has a window of {window} tokens, but its family has {known or 'none'}; get its files again"
        )


def _scale(config: Any, metadata: Mapping[str, Any]) -> None:
    """Set the scale of attention scores, and the cap on them."""
    if config.model_type in _LARGEST:
        largest = config.num_hidden_layers == _LARGEST[config.model_type]
        config.query_pre_attn_scalar = (
            config.hidden_size // config.num_attention_heads if largest else config.head_dim
        )
    for key, field in _CAPS.items():
        if key in metadata and hasattr(config, field):
            setattr(config, field, float(metadata[key]))


def _size_experts(config: Any, metadata: Mapping[str, Any]) -> None:
    """Set the inner sizes of experts, routed and shared: those of Qwen's bases differ."""
    for key, field in _EXPERT_SIZES.items():
        if key in metadata and hasattr(config, field):
            setattr(config, field, int(metadata[key]))


def _end(config: Any, metadata: Mapping[str, Any]) -> None:
    """Add the token that ends a chat's turn: many bases have a separate one."""
    ends = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")]
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    found = [each for each in dict.fromkeys((*known, *ends)) if each is not None]
    config.eos_token_id = found[0] if len(found) == 1 else found or None


def supply(model: PreTrainedModel, path: Path, subject: str) -> None:
    """Give a model what its file holds and transformers has not read.

    Raises UnsupportedBase for tensors that the model has no place for.
    """
    _, tensors = read_gguf_metadata(str(path))
    _check_biases(model, tensors, subject)
    if _FREQUENCIES not in tensors:
        return
    rotary: Any = getattr(model.base_model, "rotary_emb", None)
    held = next(each for each in gguf.GGUFReader(path).tensors if each.name == _FREQUENCIES)
    divisors = torch.from_numpy(gguf.dequantize(held.data, held.tensor_type).copy()).float()
    frequencies = getattr(rotary, "inv_freq", None)
    if frequencies is None or frequencies.shape != divisors.shape:
        raise UnsupportedBase(
            subject,
            f"has {_FREQUENCIES} of {list(divisors.shape)}, which its family does not use; get its files again",
        )
    frequencies /= divisors.to(frequencies.device)


def _check_biases(model: PreTrainedModel, tensors: Sequence[str], subject: str) -> None:
    """Refuse biases of linears that have none by their family's defaults."""
    plain = {path for path, each in model.named_modules() if isinstance(each, nn.Linear) and each.bias is None}
    for name in tensors:
        _, _, rest = name.partition("blk.")
        layer, _, kind = rest.removesuffix(".bias").partition(".")
        if not name.endswith(".bias") or kind not in _BIASED:
            continue
        own = tuple(f"layers.{layer}.{part}.{_BIASED[kind]}" for part in ("self_attn", "mlp"))
        if any(path.endswith(own) for path in plain):
            raise UnsupportedBase(subject, f"has {name}, which its family does not use; get its files again")
