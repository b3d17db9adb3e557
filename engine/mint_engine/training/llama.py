"""A llama-like base in the form of the lean training pass: fused products, without a second copy of any weight.

Weights that are multiplied together are concatenated once, and transformers' modules become views of the result. A
layer has a network for all tokens or, in families that are otherwise llama-like, routed experts in its place or
beside it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from mint_contracts.cuts import Cut
from mint_engine.adapters.adapter import Module
from mint_engine.kernels import attention_structs
from mint_engine.kernels.attention_structs import NO_NORMS, HeadNorms
from mint_engine.kernels.linear_structs import Angles
from mint_engine.kernels.row_structs import Norm
from mint_engine.model.base import Base
from mint_engine.model.expert_product import rows_of
from mint_engine.model.head_layers import read_angles, read_heads, sizes_of
from mint_engine.model.indexer import turns_pairs
from mint_engine.model.latent import is_latent
from mint_engine.model.llama_like import (
    Unlike,
    attends_to_some,
    bias_of,
    block_of,
    check_config,
    check_experts,
    check_indexer,
    interleaves,
    latent_norms,
    names_of,
    network_of,
    placeholders_of,
    router_of,
    windows_of,
)
from mint_engine.model.modules import decoder_of, layers_of
from mint_engine.model.numerics import LayerNorms, Numerics, norm_of, norms_of, read_numerics
from mint_engine.model.quantised_experts import QuantisedWeight
from mint_engine.parallel.shares import Share
from mint_engine.training.kernels import Heads
from mint_engine.training.latent import Latent
from mint_engine.training.lean_indexer import Indexer
from mint_engine.training.products import Product, Target


@dataclass(frozen=True)
class Network:
    """A gated network (MLP) for all tokens."""

    gate_up: Product
    down: Product


@dataclass(frozen=True)
class Experts:
    """transformers' router of one layer, and the networks held here of those that it chooses from for each token."""

    number: int  # this layer's number among the base's layers with experts
    router: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # -> logits, weights, indices
    kind: str  # the name of the router's class
    per_token: int  # experts that each token is routed to
    count: int  # experts that the router chooses from
    held: Cut
    gate_up: tuple[Product, ...]  # both in one; each by itself if they are interleaved in the weight
    down: Product
    gate_up_bias: torch.Tensor | None  # [E, 2 I]
    down_bias: torch.Tensor | None  # [E, H]


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    norms: LayerNorms  # [H] each
    qkv: Product
    heads: Heads
    head_norms: HeadNorms
    angles: Angles
    latent: Latent | None  # in place of `heads`
    output: Product
    network: Network | None
    experts: Experts | None


@dataclass(frozen=True)
class Llama:
    """A complete base."""

    embedding: torch.Tensor  # [V, H]
    placeholders: torch.Tensor  # int64: tokens that have the embedding of token 0
    layers: tuple[Layer, ...]
    norm: Norm  # [H]
    head: nn.Linear
    epsilon: float
    numerics: Numerics

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normed outputs [n, H] -> logits [n, V], scaled and capped as in the base."""
        found: torch.Tensor = self.head(hidden)
        if self.numerics.logit_divisor:
            found = found / self.numerics.logit_divisor
        cap = self.numerics.logit_cap
        return torch.tanh(found / cap) * cap if cap else found


def read_llama(base: Base, modules: Mapping[str, Module], share: Share | None = None) -> Llama:
    """Read a base, using its own weights. Raises Unlike if it is not llama-like, and then leaves it unchanged.

    With several ranks, `share` is the rank's, to which the base has already been cut.
    """
    config, model = base.config, base.model
    positions = base.context_length or int(config.max_position_embeddings)
    check_config(config, positions)
    decoder = decoder_of(model)
    attention = decoder.layers[0].self_attn
    sizes = sizes_of(config, attention, share) if not is_latent(attention) else None
    angles, windows = read_angles(config, decoder.rotary_emb, base, positions), windows_of(config, positions)
    read = _Reader(modules, config, share, sizes, attends_to_some(config, positions))
    return Llama(
        embedding=decoder.embed_tokens.weight,
        placeholders=placeholders_of(model.config),
        layers=tuple(
            read.layer(*each, turned, window)
            for each, turned, window in zip(layers_of(model), angles, windows, strict=True)
        ),
        norm=norm_of(config, decoder.norm),
        head=model.lm_head,
        epsilon=float(config.rms_norm_eps),
        numerics=read_numerics(config, decoder.embed_tokens, base.dtype),
    )


@dataclass(frozen=True)
class _Reader:
    """Reads layers and fuses weights that are multiplied together; `modules` are those that adapters may target."""

    modules: Mapping[str, Module]
    config: Any
    share: Share | None
    sizes: tuple[int, int, int] | None  # of heads; None: latent attention
    sparse: bool  # whether indexers have something to choose
    numbers: Iterator[int] = field(default_factory=itertools.count)  # for the layers with experts

    def layer(self, path: str, layer: Any, angles: Angles, window: int) -> Layer:
        """Read one of transformers' decoder layers."""
        attention, (mlp, block) = layer.self_attn, block_of(path, layer)
        whole_at, whole = network_of(mlp, block)
        found = None
        if self.sizes is not None:
            found = read_heads(self.config, attention, self.sizes, angles, window)
        qkv = self._fused(f"{path}.self_attn", attention, names_of("qkv", attention))
        return Layer(
            norms=norms_of(self.config, layer),
            qkv=qkv,
            heads=_heads(found, float(attention.scaling)),
            head_norms=found.norms if found is not None else NO_NORMS,
            angles=found.angles if found is not None else angles,
            latent=self._latent(f"{path}.self_attn", attention, qkv) if found is None else None,
            output=self._fused(f"{path}.self_attn", attention, ("o_proj",)),
            network=self._network(whole_at, whole) if whole is not None else None,
            experts=self._experts(mlp, block) if whole is not block else None,
        )

    def _latent(self, path: str, attention: Any, first: Product) -> Latent:
        norm, query_norm = latent_norms(attention)
        rotated, plain, value = attention.qk_rope_head_dim, attention.qk_nope_head_dim, attention.v_head_dim
        indexer = attention.indexer if self.sparse else None
        return Latent(
            first=first,
            query_norm=query_norm.weight if query_norm is not None else None,
            queries=self._fused(path, attention, ("q_b_proj",)) if query_norm is not None else None,
            norm=norm.weight,
            up=self._fused(path, attention, ("kv_b_proj",)),
            indexer=self._indexer(f"{path}.indexer", indexer) if indexer is not None else None,
            shares=self.sparse and indexer is None,
            sizes=(int(attention.num_heads), int(plain), int(rotated), int(value)),
            pairs=interleaves(attention.config),
            scale=float(attention.scaling),
            epsilon=float(norm.variance_epsilon),
        )

    def _indexer(self, path: str, indexer: Any) -> Indexer:
        check_indexer(indexer)
        norm = indexer.k_norm
        return Indexer(
            queries=self._fused(path, indexer, ("wq_b",)),
            first=self._fused(path, indexer, ("wk", "weights_proj")),
            norm=norm.weight,
            bias=norm.bias,
            epsilon=float(norm.eps),
            rotated=int(indexer.qk_rope_head_dim),
            pairs=turns_pairs(indexer.config.model_type),
            top_k=int(indexer.index_topk),
        )

    def _network(self, path: str, mlp: Any) -> Network:
        return Network(
            gate_up=self._fused(path, mlp, names_of("gate_up", mlp)),
            down=self._fused(path, mlp, ("down_proj",)),
        )

    def _experts(self, path: str, mlp: Any) -> Experts:
        experts, router = mlp.experts, router_of(mlp)
        check_experts(experts)
        count, kind, each = int(experts.num_experts), type(router).__name__, int(router.top_k)
        if self.config.model_type == "minimax_m2":  # its block holds the bias that its router adds to scores
            router = partial(router, e_score_correction_bias=mlp.e_score_correction_bias)
        held = self.share.experts if self.share is not None else Cut(0, count)
        gate_up, down = (self._stack(f"{path}.experts", experts, name) for name in ("gate_up_proj", "down_proj"))
        biases = (experts.gate_up_proj_bias, experts.down_proj_bias) if experts.has_bias else (None, None)
        if biases[0] is not None and not experts.is_concatenated:
            biases = torch.cat((biases[0][:, 0::2], biases[0][:, 1::2]), dim=1), biases[1]
        return Experts(next(self.numbers), router, kind, each, count, held, gate_up, down[0], *biases)

    def _stack(self, path: str, experts: Any, name: str) -> tuple[Product, ...]:
        """Return a stacked linear as one product, or as two if gates and what they gate are interleaved."""
        if isinstance(getattr(experts, name), QuantisedWeight):
            raise Unlike("its experts stay quantised")
        weight = rows_of(experts, name).detach()
        parts = [module for module in self.modules.values() if module.part_of == f"{path}.{name}"]
        if experts.is_concatenated or name == "down_proj":
            targets = [Target(part.path, slice(*part.outputs.indices(weight.shape[1]))) for part in parts]
            return (Product(weight, None, tuple(targets)),)
        return tuple(
            Product(
                own,
                None,
                tuple(Target(part.path, slice(0, own.shape[1])) for part in parts if part.outputs.start == first),
            )
            for first, own in enumerate((weight[:, 0::2], weight[:, 1::2]))
        )

    def _fused(self, path: str, parent: nn.Module, names: Sequence[str]) -> Product:
        linears: list[Any] = [getattr(parent, name) for name in names]
        weight, targets, row = linears[0].weight, [], 0
        if len(linears) > 1:
            weight = torch.cat([linear.weight for linear in linears])
        weight = weight.contiguous()
        for name, linear in zip(names, linears, strict=True):
            columns = slice(row, row + linear.weight.shape[0])
            linear.weight.data = weight[columns]  # a view of the fused weight replaces the old one
            if f"{path}.{name}" in self.modules:
                targets.append(Target(f"{path}.{name}", columns))
            row = columns.stop
        return Product(weight.detach()[None], bias_of(linears), tuple(targets))


def _heads(of: attention_structs.Heads | None, scale: float) -> Heads:
    """Return the heads as attention over trees takes them; none for latent attention."""
    return (
        Heads(of.queries, of.keys, of.size, scale, of.variant, of.pairs) if of is not None else Heads(0, 0, 0, scale)
    )
