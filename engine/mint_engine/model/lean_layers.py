"""Reads a llama-like base from transformers' modules for the lean pass: fuses and packs it, or refuses it.

Llama-like means layers of grouped-query attention with rotary positions and of a gated network. Each follows a norm,
as in Llama, Mistral, Phi-3, Qwen2, Qwen3, Seed-OSS and SmolLM2, precedes one, as in OLMo 2, or lies between two, as
in Gemma 2. Routed experts may replace the network, as in Mixtral and gpt-oss, or be beside it, as in GLM-4.5 and
dots.llm1; attention may be latent, as in DeepSeek-V3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mint_engine.kernels.attention_structs import Heads, Latent
from mint_engine.kernels.constants import MAX_QUERY_ROWS, MAX_RANK
from mint_engine.kernels.expert_structs import Experts
from mint_engine.kernels.library import Kernels
from mint_engine.kernels.linear_structs import Angles, Linear
from mint_engine.kernels.row_structs import Norm
from mint_engine.model.base import Base
from mint_engine.model.expert_layers import ExpertReader
from mint_engine.model.head_layers import CHUNK_TOKENS, read_angles, read_heads, sizes_of
from mint_engine.model.latent import is_latent
from mint_engine.model.latent_layers import check_latent, read_latent
from mint_engine.model.llama_like import (
    Unlike,
    attends_to_some,
    bias_of,
    block_of,
    check_config,
    names_of,
    network_of,
    placeholders_of,
    windows_of,
)
from mint_engine.model.modules import decoder_of, layers_of
from mint_engine.model.numerics import Numerics, norm_of, norms_of, read_numerics
from mint_engine.parallel.shares import Share
from mint_engine.residency.large_pages import LargePages
from mint_engine.residency.slots import Slots

MAX_FUSED_MODULES = 4  # most modules that are fused into one linear map


@dataclass(frozen=True)
class Network:
    """A gated network that all tokens take."""

    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    attention_norm: Norm  # [H], like the other norms; any of them may be none
    qkv: Linear
    heads: Heads | None  # None: latent
    latent: Latent | None
    output: Linear
    post_attention_norm: Norm  # of attention's output
    mlp_norm: Norm
    network: Network | None
    experts: Experts | None
    post_mlp_norm: Norm  # of the output of network and experts


@dataclass(frozen=True)
class Llama:
    """A complete base, for requests of up to `positions` tokens."""

    positions: int
    embedding: torch.Tensor  # [V, H]
    placeholders: torch.Tensor  # int64: tokens that have the embedding of token 0
    layers: tuple[Layer, ...]
    norm: Norm  # [H]
    head: Linear
    scale: float
    epsilon: float
    numerics: Numerics

    @property
    def targets(self) -> list[list[int]]:
        """Numbers of the modules in each layer that adapters may target."""
        return [sorted(_targets(layer)) for layer in self.layers]


def _targets(layer: Layer) -> set[int]:
    networks = [each for each in (layer.network, layer.experts) if each is not None]
    linears = [layer.qkv, layer.output, *(linear for each in networks for linear in (each.gate_up, each.down))]
    found = {int(row[0]) for linear in (*linears, *latent_queries(layer)) for row in linear.targets}
    module = layer.latent.module if layer.latent is not None else None
    return found | ({module} if module is not None else set())


def latent_queries(layer: Layer) -> list[Linear]:
    """The linears that make queries from compressed ones in latent attention: the heads', and the indexer's."""
    latent = layer.latent
    made = [latent.queries, latent.indexer.queries if latent.indexer else None] if latent else []
    return [linear for linear in made if linear is not None]


def read_llama(base: Base, slots: Slots, kernels: Kernels, positions: int, share: Share | None) -> Llama:
    """Read the base for `positions` positions. Raises Unlike, leaving it unchanged, if it is not llama-like.

    With several ranks, `share` is the part to which the base has already been cut.
    """
    config, model = base.config, base.model
    _check(config, slots, positions)
    decoder = decoder_of(model)
    attention = decoder.layers[0].self_attn
    if is_latent(attention):
        check_latent(attention, config)
    sizes = sizes_of(config, attention, share) if not is_latent(attention) else None
    group = share.most_queries if share is not None else sizes[0] // sizes[1] if sizes is not None else 0
    if sizes is not None and group * CHUNK_TOKENS > MAX_QUERY_ROWS:  # on any rank: all of them choose the same pass
        raise Unlike(f"{sizes[0]} heads over {sizes[1]} fit no kernel")
    angles, windows = read_angles(config, decoder.rotary_emb, base, positions), windows_of(config, positions)
    read = _Reader(kernels, slots.index, config, share, sizes, positions)
    return Llama(
        positions=positions,
        embedding=decoder.embed_tokens.weight,
        placeholders=placeholders_of(model.config),
        layers=tuple(
            read.layer(*each, turned, window)
            for each, turned, window in zip(layers_of(model), angles, windows, strict=True)
        ),
        norm=norm_of(config, decoder.norm),
        head=read.fused({"lm_head": model.lm_head}),
        scale=float(attention.scaling),
        epsilon=float(config.rms_norm_eps),
        numerics=read_numerics(config, decoder.embed_tokens, base.dtype),
    )


def _check(config: Any, slots: Slots, positions: int) -> None:
    check_config(config, positions)
    of_experts = getattr(config, "moe_intermediate_size", 0)
    inner = of_experts if isinstance(of_experts, list) else [of_experts]  # Hunyuan has one for each layer
    if any(size % 2 for size in (config.hidden_size, config.intermediate_size, *inner)):
        raise Unlike("its sizes are odd, and kernels take inputs by twos")
    if slots.max_rank > MAX_RANK:
        raise Unlike(f"ranks up to {slots.max_rank} fit no kernel")


@dataclass(frozen=True)
class _Reader:
    """Packs linears that belong together into one map; `index` numbers the modules that adapters may target.

    `sizes` are those of the heads on this rank, which are all of them without a `share`.
    """

    kernels: Kernels
    index: Mapping[str, int]
    config: Any
    share: Share | None
    sizes: tuple[int, int, int] | None
    positions: int
    memory: LargePages = field(default_factory=LargePages)  # of packed weights

    def layer(self, path: str, layer: Any, angles: Angles, window: int) -> Layer:
        """Read one of transformers' decoder layers."""
        attention = layer.self_attn
        at, (mlp, block) = f"{path}.self_attn", block_of(path, layer)
        whole_at, whole = network_of(mlp, block)
        norms = norms_of(self.config, layer)
        heads = None
        if self.sizes is not None:
            heads = read_heads(self.config, attention, self.sizes, angles, window)
        return Layer(
            attention_norm=norms.attention,
            qkv=self.fused({f"{at}.{name}": attention.get_submodule(name) for name in self._first(attention)}),
            heads=heads,
            latent=self._latent(at, attention, angles) if heads is None else None,
            output=self.fused({f"{at}.o_proj": attention.o_proj}),
            post_attention_norm=norms.attended,
            mlp_norm=norms.network,
            network=self._network(whole_at, whole) if whole is not None else None,
            experts=self._experts(mlp, block) if whole is not block else None,
            post_mlp_norm=norms.given,
        )

    def fused(self, linears: Mapping[str, nn.Linear]) -> Linear:
        """Fuse linears of the same input, by path, into one map with their outputs side by side."""
        weights: list[torch.Tensor] = [linear.weight for linear in linears.values()]
        targets, column = [], 0
        for path, linear in linears.items():
            targets.append(self._targets({path: column}, linear.in_features, linear.out_features))
            column += linear.out_features
        return self.kernels.pack(
            torch.cat(weights),
            bias_of(list(linears.values())),
            torch.cat(targets),
            self.memory,
        )

    def _first(self, attention: Any) -> tuple[str, ...]:
        """Names of the linears that take an attention's input, and those of an indexer with a choice to make."""
        indexed = ("indexer.wk", "indexer.weights_proj") if self._indexes(attention) else ()
        return *names_of("qkv", attention), *indexed

    def _indexes(self, attention: Any) -> bool:
        some = attends_to_some(self.config, self.positions)
        return some and getattr(attention, "indexer", None) is not None

    def _latent(self, path: str, attention: Any, angles: Angles) -> Latent:
        def fused(name: str) -> Linear:
            return self.fused({f"{path}.{name}": attention.get_submodule(name)})

        queries = fused("q_b_proj") if attention.q_b_proj is not None else None
        indexed = fused("indexer.wq_b") if self._indexes(attention) else None
        module = self.index.get(f"{path}.kv_b_proj")
        return read_latent(attention, queries, indexed, module, angles, self.kernels, self.memory)

    def _network(self, path: str, mlp: Any) -> Network:
        return Network(
            gate_up=self.fused({f"{path}.{name}": getattr(mlp, name) for name in names_of("gate_up", mlp)}),
            down=self.fused({f"{path}.down_proj": mlp.down_proj}),
        )

    def _experts(self, path: str, mlp: Any) -> Experts:
        first = self.share.experts.start if self.share is not None else 0
        reader = ExpertReader(self.kernels, self.memory, self.config.model_type, first, self._targets)
        return reader.read(path, mlp)

    def _targets(self, columns: Mapping[str, int], wide: int, high: int) -> torch.Tensor:
        """Return the modules of one shape, by path and first column, that adapters may target."""
        rows = [(self.index[path], at, wide, high) for path, at in columns.items() if path in self.index]
        return torch.tensor(rows, dtype=torch.int64).view(-1, 4)
