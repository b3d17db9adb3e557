"""Cutting a base's transformers model down to what one rank holds."""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from mint_contracts.cuts import Cut
from mint_engine.adapters.adapter import Module
from mint_engine.model.base import Base
from mint_engine.model.cache_shape import LatentShape, cache_shape
from mint_engine.model.experts import is_stack
from mint_engine.model.modules import is_linear, layers_of
from mint_engine.model.quantised_experts import QuantisedWeight
from mint_engine.parallel.norms import SharedNorm
from mint_engine.parallel.shares import Dimensions, ModuleCut, Share, not_shared, share_out

# Model types that norm queries and keys over all heads, as `SharedNorm` does.
_WIDE_NORMS = frozenset({"minimax_m2", "olmo2", "olmo3"})
STACKED = ("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias")  # parameters of stacked experts


def share_of(model: PreTrainedModel, rank: int, count: int) -> Share:
    """Return a rank's share of an uncut model. Raises UnsupportedBase."""
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    if isinstance(cache_shape(config), LatentShape):
        kv_heads = heads  # all heads' keys and values come from one latent
    stacks = [cast(Any, module) for module in model.modules() if is_stack(module)]
    experts = min((int(stack.gate_up_proj.shape[0]) for stack in stacks), default=0)
    wide = config.model_type in _WIDE_NORMS
    return share_out(Dimensions(heads, kv_heads, int(config.vocab_size), experts, wide), count)[rank]


def shard(model: PreTrainedModel, share: Share) -> None:
    """Cut the decoder layers in place. Raises UnsupportedBase for a layer that cannot be split."""
    for path, layer in layers_of(model):
        shard_layer(path, layer, share)


def shard_layer(path: str, layer: nn.Module, share: Share) -> None:
    """Cut a decoder layer in place. Raises UnsupportedBase if it cannot be split."""
    for inner, module in layer.named_modules(prefix=path):
        if is_linear(module):
            cut = share.of(Module(inner, module.in_features, module.out_features))
            own = cut_linear(module, cut, whole_bias=share.rank == 0)
            module.weight, module.bias = own.weight, own.bias
            module.in_features, module.out_features = own.in_features, own.out_features
        elif is_stack(module):
            _cut_stack(module, share.experts)
        elif hasattr(module, "o_proj"):
            _cut_heads(module, inner, share)


def shard_head(base: Base, share: Share) -> None:
    """Cut the output layer to the rank's share of the vocabulary; input embeddings stay uncut."""
    model: Any = base.model  # its output layer's accessors are not typed
    model.set_output_embeddings(
        cut_linear(model.get_output_embeddings(), ModuleCut(outputs=share.vocabulary), whole_bias=True)
    )


def cut_linear(linear: nn.Linear, cut: ModuleCut, *, whole_bias: bool) -> nn.Linear:
    """Return a copy of a share of a linear; if it is cut by inputs, only one rank's share has the bias."""
    columns, rows, _ = cut.slices
    weight = torch.cat([linear.weight[run, columns] for run in rows])
    own = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    own.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None and (cut.inputs is None or whole_bias):
        own.bias = nn.Parameter(torch.cat([linear.bias[run] for run in rows]), requires_grad=False)
    return own


def _cut_stack(experts: nn.Module, held: Cut) -> None:
    for name in STACKED:
        weight = getattr(experts, name, None)
        if isinstance(weight, QuantisedWeight):
            setattr(experts, name, weight.cut(slice(*held)))
        elif weight is not None:
            setattr(experts, name, _part(weight, held))


def _cut_heads(attention: Any, path: str, share: Share) -> None:
    """Cut what attention has for every head beside its linears, which are cut on their own: sinks, and wide norms.

    Norms of a single head, and of latents, stay as they are.
    """
    for name, weight in attention.named_parameters(recurse=False):
        if name != "sinks":
            raise not_shared(f"{path}.{name}")
        attention.sinks = _part(weight, share.heads)
    uncut = {getattr(attention, size, None) for size in ("head_dim", "q_lora_rank", "kv_lora_rank")}
    norms = [each for each in attention.named_children() if not is_linear(each[1]) and hasattr(each[1], "weight")]
    for name, norm in norms:
        size = int(norm.weight.shape[0])
        if held := share.of_norm(f"{path}.{name}", size):
            setattr(attention, name, SharedNorm(norm, held, counted=name == "q_norm" or share.counts_keys))
        elif size not in uncut:  # over more than one head, in an unknown way
            raise not_shared(f"{path}.{name}")
    if hasattr(attention, "num_heads"):  # latent attention
        attention.num_heads = share.heads.size
    if hasattr(attention, "qkv_proj"):  # it splits that by the numbers of heads in its configuration
        attention.config = _OwnHeads(attention.config, share.heads.size)
        attention.num_key_value_heads = share.kv_heads.size


class _OwnHeads:
    """A view of a base's configuration, later changes included, with the number of heads of a rank's attention."""

    def __init__(self, config: Any, heads: int) -> None:
        self._config, self.num_attention_heads = config, heads

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_config" not in self.__dict__:  # as copy.copy asks before the copy is filled
            raise AttributeError(name)
        return getattr(self._config, name)


def _part(weight: torch.Tensor, cut: Cut) -> nn.Parameter:
    return nn.Parameter(weight[slice(*cut)].clone(), requires_grad=False)
