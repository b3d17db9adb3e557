"""What families of llama-like bases tell of their norms, and of what is done to numbers beside them."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from mint_engine.kernels.row_structs import NO_NORM, Activation, Norm
from mint_engine.model.llama_like import GEMMA, Unlike

_EXACT = GEMMA | {"gpt_oss", "olmo2", "olmo3"}  # families whose norms round what is weighed already
_ACTIVATED = frozenset({"gemma2", "gemma3_text"})  # that tell of their activation by another name
_ACTIVATIONS: dict[str, Literal["silu", "gelu_pytorch_tanh"]] = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
}


@dataclass(frozen=True)
class LayerNorms:
    """Of what attention and network take, and of what they give; there may be none of some."""

    attention: Norm
    attended: Norm
    network: Norm
    given: Norm


def norm_of(config: Any, module: Any) -> Norm:
    """One of transformers' RMSNorms; none for None. Gemma's weights are told less one."""
    if module is None:
        return NO_NORM
    weight = module.weight.detach()
    if config.model_type not in _EXACT:
        return Norm(weight)
    return Norm(exact=weight.float() + 1.0 if config.model_type in GEMMA else weight.float())


def norms_of(config: Any, layer: Any) -> LayerNorms:
    """A decoder layer's."""
    first, second = getattr(layer, "input_layernorm", None), layer.post_attention_layernorm
    last = getattr(layer, "post_feedforward_layernorm", None)
    if last is None:
        return LayerNorms(norm_of(config, first), NO_NORM, norm_of(config, second), NO_NORM)
    between = getattr(layer, "pre_feedforward_layernorm", None)
    attention, attended, network, given = (norm_of(config, each) for each in (first, second, between, last))
    return LayerNorms(attention, attended, network, given)


def activation_of(config: Any) -> Activation:
    """Of networks' gates. Raises Unlike."""
    if config.model_type == "gpt_oss":
        return Activation("clamped", float(config.swiglu_alpha), float(config.swiglu_limit))
    told = getattr(config, "hidden_activation" if config.model_type in _ACTIVATED else "hidden_act")
    if told not in _ACTIVATIONS:
        raise Unlike(f"the activation is {told}")
    return Activation(_ACTIVATIONS[told])


def enlarged_by(config: Any, embedding: Any, dtype: torch.dtype) -> float:
    """What embeddings are multiplied by: a number that is rounded, as Gemma has it, or one that is not."""
    if (rounded := getattr(embedding, "embed_scale", None)) is not None:
        return float(rounded.to(dtype))
    return float(getattr(config, "embedding_multiplier", 1.0))


def added_by(config: Any) -> float:
    """What is multiplied by it before it is added to the residual stream."""
    return float(getattr(config, "residual_multiplier", 1.0))


def bounds_of(config: Any) -> tuple[float, float]:
    """What logits are divided by, and what they are held within; 0: nothing."""
    divided, cap = (getattr(config, name, None) for name in ("logits_scaling", "final_logit_softcapping"))
    return float(divided or 0.0), float(cap or 0.0)
