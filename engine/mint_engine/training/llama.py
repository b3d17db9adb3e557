"""A llama-like base as the lean training pass wants it: fused products, without a second copy of any weight.

Weights that are multiplied together are laid side by side once, and transformers' modules see their parts of that.
A layer has a network for all tokens, or, in families that are llama-like but for it, routed experts in its place or
beside it.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mint_engine.adapters.adapter import Module
from mint_engine.model.base import Base
from mint_engine.model.kept import KeptStack
from mint_engine.model.latent import is_latent
from mint_engine.model.llama_like import (
    Unlike,
    attends_to_some,
    bias_of,
    check_experts,
    check_trained,
    interleaves,
    latent_norms,
    names_of,
    network_of,
    placeholders_of,
)
from mint_engine.model.modules import decoder_of, layers_of
from mint_engine.parallel.shares import Cut, Share
from mint_engine.training.kernels import Heads
from mint_engine.training.latent import Latent
from mint_engine.training.products import Product, Target


@dataclass(frozen=True)
class Network:
    """A gated network that all tokens take."""

    gate_up: Product
    down: Product


@dataclass(frozen=True)
class Experts:
    """A router, as transformers has it, and those that are held of the networks of which it gives each token some."""

    number: int  # of the base's layers with experts, this one
    router: nn.Module
    count: int  # of all that the router chooses from
    held: Cut
    gate_up: Product
    down: Product


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    attention_norm: torch.Tensor  # [H]
    qkv: Product
    head_norms: tuple[torch.Tensor, torch.Tensor] | None  # of queries and keys [D]
    latent: Latent | None  # in place of heads
    output: Product
    mlp_norm: torch.Tensor  # [H]
    network: Network | None
    experts: Experts | None


@dataclass(frozen=True)
class Llama:
    """A whole base; cos and sin [positions, half] float32 are the angles of each position."""

    embedding: torch.Tensor  # [V, H]
    placeholders: torch.Tensor  # int64: tokens that have the embedding of token 0
    layers: tuple[Layer, ...]
    norm: torch.Tensor  # [H]
    head: nn.Linear
    cos: torch.Tensor
    sin: torch.Tensor
    heads: Heads
    epsilon: float


def read_llama(base: Base, modules: Mapping[str, Module], share: Share | None = None) -> Llama:
    """The base, over its own weights. Raises Unlike where it is not llama-like; then it stays as it is.

    Of several ranks, a rank's `share`, which the base has already been cut to.
    """
    config, model = base.config, base.model
    positions = base.context_length or int(config.max_position_embeddings)
    check_trained(config, positions)
    decoder = decoder_of(model)
    heads = _heads(config, decoder.layers[0].self_attn, share, positions)
    cos, sin = decoder.rotary_emb(torch.empty(0, dtype=base.dtype), torch.arange(positions)[None])
    half = cos.shape[-1] // 2  # both halves of a head turn by the same angles
    head: Any = model.lm_head
    read = _Reader(modules, share.experts if share is not None else None)
    return Llama(
        embedding=decoder.embed_tokens.weight,
        placeholders=placeholders_of(model.config),
        layers=tuple(read.layer(path, layer) for path, layer in layers_of(model)),
        norm=decoder.norm.weight,
        head=head,
        cos=cos[0, :, :half].float().contiguous(),
        sin=sin[0, :, :half].float().contiguous(),
        heads=heads,
        epsilon=float(config.rms_norm_eps),
    )


def _heads(config: Any, attention: Any, share: Share | None, positions: int) -> Heads:
    """As attention over trees takes them; of latent attention none."""
    if attends_to_some(config, positions):
        raise Unlike("sparse attention has no lean pass in training")
    if is_latent(attention):
        return Heads(0, 0, 0, 0.0)
    queries, keys = int(config.num_attention_heads), int(config.num_key_value_heads)
    if share is not None:
        queries, keys = share.heads.size, share.kv_heads.size
    heads = Heads(queries, keys, int(attention.head_dim), float(attention.scaling))
    if heads.dim % 16 or heads.queries % heads.keys:
        raise Unlike(f"heads of {heads.dim}, {heads.queries} over {heads.keys}, fit no kernel")
    return heads


@dataclass(frozen=True)
class _Reader:
    """Lays what is multiplied together side by side; `modules` are those that adapters may target.

    Of several ranks, `held` are a rank's experts.
    """

    modules: Mapping[str, Module]
    held: Cut | None
    numbers: Iterator[int] = field(default_factory=itertools.count)  # of layers with experts

    def layer(self, path: str, layer: Any) -> Layer:
        """One of transformers' decoder layers."""
        attention = layer.self_attn
        norms = (attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None
        mlp = f"{path}.mlp"
        whole_at, whole = network_of(mlp, layer.mlp)
        qkv = self._fused(f"{path}.self_attn", attention, names_of("qkv", attention))
        return Layer(
            attention_norm=layer.input_layernorm.weight,
            qkv=qkv,
            head_norms=norms,
            latent=self._latent(f"{path}.self_attn", attention, qkv) if is_latent(attention) else None,
            output=self._fused(f"{path}.self_attn", attention, ("o_proj",)),
            mlp_norm=layer.post_attention_layernorm.weight,
            network=self._network(whole_at, whole) if whole is not None else None,
            experts=self._experts(mlp, layer.mlp) if whole is not layer.mlp else None,
        )

    def _latent(self, path: str, attention: Any, first: Product) -> Latent:
        norm, query_norm = latent_norms(attention)
        rotated, plain, value = attention.qk_rope_head_dim, attention.qk_nope_head_dim, attention.v_head_dim
        return Latent(
            first=first,
            query_norm=query_norm.weight if query_norm is not None else None,
            queries=self._fused(path, attention, ("q_b_proj",)) if query_norm is not None else None,
            norm=norm.weight,
            up=self._fused(path, attention, ("kv_b_proj",)),
            sizes=(int(attention.num_heads), int(plain), int(rotated), int(value)),
            pairs=interleaves(attention.config),
            scale=float(attention.scaling),
            epsilon=float(norm.variance_epsilon),
        )

    def _network(self, path: str, mlp: Any) -> Network:
        return Network(
            gate_up=self._fused(path, mlp, names_of("gate_up", mlp)),
            down=self._fused(path, mlp, ("down_proj",)),
        )

    def _experts(self, path: str, mlp: Any) -> Experts:
        experts = mlp.experts
        check_experts(experts)
        count = int(experts.num_experts)
        gate_up, down = (self._stack(f"{path}.experts", experts, name) for name in ("gate_up_proj", "down_proj"))
        return Experts(next(self.numbers), mlp.gate, count, self.held or Cut(0, count), gate_up, down)

    def _stack(self, path: str, experts: Any, name: str) -> Product:
        weight = getattr(experts, name)
        if isinstance(weight, KeptStack):
            raise Unlike("its experts stay quantised")
        weight = weight.detach()
        parts = [module for module in self.modules.values() if module.part_of == f"{path}.{name}"]
        targets = [Target(part.path, slice(*part.outputs.indices(weight.shape[1]))) for part in parts]
        return Product(weight, None, tuple(targets))

    def _fused(self, path: str, parent: nn.Module, names: Sequence[str]) -> Product:
        linears: list[Any] = [getattr(parent, name) for name in names]
        weight, targets, row = linears[0].weight, [], 0
        if len(linears) > 1:
            weight = torch.cat([linear.weight for linear in linears])
        weight = weight.contiguous()
        for name, linear in zip(names, linears, strict=True):
            columns = slice(row, row + linear.weight.shape[0])
            linear.weight.data = weight[columns]  # the part of the whole takes the place of the old one
            if f"{path}.{name}" in self.modules:
                targets.append(Target(f"{path}.{name}", columns))
            row = columns.stop
        return Product(weight.detach()[None], bias_of(linears), tuple(targets))
