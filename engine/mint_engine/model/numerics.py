"""The norms of llama-like families, and their other row-wise arithmetic."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from mint_engine.kernels.row_structs import NO_NORM, Activation, Norm
from mint_engine.model.llama_like import GEMMA, Unlike

_EXACT = GEMMA | {"gpt_oss", "olmo2", "olmo3"}  # families whose norms round only after multiplying by the weight
_ACTIVATED = frozenset({"gemma2", "gemma3_text"})  # families that name their activation differently
_ACTIVATIONS: dict[str, Literal["silu", "gelu_pytorch_tanh"]] = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
}


@dataclass(frozen=True)
class LayerNorms:
    """Norms of the inputs and outputs of attention and network; some may be none."""

    attention: Norm
    attended: Norm
    network: Norm
    given: Norm


def norm_of(config: Any, module: Any) -> Norm:
    """Read one of transformers' RMSNorms; no norm for None. Gemma's weights are stored minus one."""
    if module is None:
        return NO_NORM
    weight = module.weight.detach()
    if config.model_type not in _EXACT:
        return Norm(weight)
    return Norm(exact=weight.float() + 1.0 if config.model_type in GEMMA else weight.float())


def norms_of(config: Any, layer: Any) -> LayerNorms:
    """Read a decoder layer's norms."""
    first, second = getattr(layer, "input_layernorm", None), layer.post_attention_layernorm
    last = getattr(layer, "post_feedforward_layernorm", None)
    if last is None:
        return LayerNorms(norm_of(config, first), NO_NORM, norm_of(config, second), NO_NORM)
    between = getattr(layer, "pre_feedforward_layernorm", None)
    attention, attended, network, given = (norm_of(config, each) for each in (first, second, between, last))
    return LayerNorms(attention, attended, network, given)


@dataclass(frozen=True)
class Numerics:
    """A base's arithmetic beside its products and norms."""

    activation: Activation  # of the networks' gates
    embedding_scale: float  # factor of the embeddings
    residual_scale: float  # factor of each part of a layer, before it is added to the residual stream
    logit_divisor: float  # divisor of the logits; 0: none
    logit_cap: float  # cap of the logits; 0: none


def read_numerics(config: Any, embedding: Any, dtype: torch.dtype) -> Numerics:
    """Read it from a configuration and the module that embeds tokens. Raises Unlike."""
    rounded = getattr(embedding, "embed_scale", None)  # Gemma's
    return Numerics(
        activation=_activation(config),
        embedding_scale=float(
            rounded.to(dtype) if rounded is not None else getattr(config, "embedding_multiplier", 1.0)
        ),
        residual_scale=float(getattr(config, "residual_multiplier", 1.0)),
        logit_divisor=float(getattr(config, "logits_scaling", 0.0)),
        logit_cap=float(getattr(config, "final_logit_softcapping", None) or 0.0),
    )


def _activation(config: Any) -> Activation:
    if config.model_type == "gpt_oss":
        return Activation("clamped", float(config.swiglu_alpha), float(config.swiglu_limit))
    name = getattr(config, "hidden_activation" if config.model_type in _ACTIVATED else "hidden_act")
    if name not in _ACTIVATIONS:
        raise Unlike(f"the activation is {name}")
    return Activation(_ACTIVATIONS[name])
