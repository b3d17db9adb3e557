"""Reads a llama-like base out of transformers' modules for the lean pass: fused and packed, or refused.

Llama-like means: pre-norm layers of grouped-query attention with rotary positions and a gated SiLU network, as in
Llama, Mistral, Phi-3, Qwen2, Qwen3, Seed-OSS and SmolLM2; or routed experts in the network's place, as in Mixtral and
Qwen3-MoE, or beside it, as in GLM-4.5 and dots.llm1; or latent attention, as in DeepSeek-V3.
Experts' weights, of which a base has most, are not packed but used where they lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mint_engine.kernels.attention_structs import NO_NORMS, HeadNorms, Latent
from mint_engine.kernels.expert_structs import Experts, Grouped, Stack
from mint_engine.kernels.library import MAX_RANK, MOST_QUERIES, Kernels, find_kernels
from mint_engine.kernels.linear_structs import Angles, Linear
from mint_engine.model.base import Base
from mint_engine.model.kept import KeptStack
from mint_engine.model.latent import is_latent
from mint_engine.model.latent_layers import check_latent, read_latent
from mint_engine.model.llama_like import (
    GROUPED,
    Unlike,
    attends_to_some,
    bias_of,
    check_config,
    check_experts,
    names_of,
    network_of,
    placeholders_of,
)
from mint_engine.model.modules import decoder_of, layers_of
from mint_engine.parallel.shares import Share
from mint_engine.residency.large_pages import LargePages
from mint_engine.residency.slots import Slots

CHUNK_TOKENS = 16  # tokens of a prompt that one work item of attention computes
MOST_TARGETS = 4  # modules that one linear map is fused of
MOST_EXPERTS = 1024  # of a layer


@dataclass(frozen=True)
class Network:
    """A gated network that all tokens take."""

    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    attention_norm: torch.Tensor  # [H]
    qkv: Linear
    head_norms: HeadNorms
    latent: Latent | None
    output: Linear
    mlp_norm: torch.Tensor  # [H]
    network: Network | None
    experts: Experts | None


@dataclass(frozen=True)
class Llama:
    """A whole base."""

    embedding: torch.Tensor  # [V, H]
    placeholders: torch.Tensor  # int64: tokens that have the embedding of token 0
    layers: tuple[Layer, ...]
    norm: torch.Tensor  # [H]
    head: Linear
    angles: Angles
    heads: tuple[int, int, int]  # query heads, key/value heads, head size
    scale: float
    epsilon: float

    @property
    def targets(self) -> list[list[int]]:
        """The modules of each layer that adapters may target, by number."""
        return [sorted(_targets(layer)) for layer in self.layers]


def _targets(layer: Layer) -> set[int]:
    networks = [each for each in (layer.network, layer.experts) if each is not None]
    linears = [layer.qkv, layer.output, *(linear for each in networks for linear in (each.gate_up, each.down))]
    found = {int(row[0]) for linear in (*linears, *latent_queries(layer)) for row in linear.targets}
    module = layer.latent.module if layer.latent is not None else None
    return found | ({module} if module is not None else set())


def latent_queries(layer: Layer) -> list[Linear]:
    """What makes queries of the compressed ones, where attention is latent: the heads', and the indexer's."""
    latent = layer.latent
    made = [latent.queries, latent.indexer.queries if latent.indexer else None] if latent else []
    return [linear for linear in made if linear is not None]


def read_llama(base: Base, slots: Slots, kernels: Kernels, positions: int, share: Share | None) -> Llama:
    """The base for `positions` positions. Raises Unlike where it is not llama-like; the base stays as it is.

    Of several ranks, a rank's `share`, which the base has already been cut to.
    """
    config, model = base.config, base.model
    _check(config, slots, positions)
    decoder = decoder_of(model)
    attention, angles = decoder.layers[0].self_attn, _angles(decoder.rotary_emb, base, positions)
    heads = _heads(config, attention, share)
    read = _Reader(kernels, slots.index, config, share.experts.start if share is not None else 0, angles)
    return Llama(
        embedding=decoder.embed_tokens.weight,
        placeholders=placeholders_of(model.config),
        layers=tuple(read.layer(path, layer) for path, layer in layers_of(model)),
        norm=decoder.norm.weight,
        head=read.fused({"lm_head": model.lm_head}),
        angles=angles,
        heads=heads,
        scale=float(attention.scaling),
        epsilon=float(config.rms_norm_eps),
    )


def _check(config: Any, slots: Slots, positions: int) -> None:
    check_config(config, positions)
    inner = (config.intermediate_size, getattr(config, "moe_intermediate_size", 0))
    if any(size % 2 for size in (config.hidden_size, *inner)):
        raise Unlike("its sizes are odd, and kernels take inputs by twos")
    if slots.max_rank > MAX_RANK:
        raise Unlike(f"ranks up to {slots.max_rank} fit no kernel")


def _heads(config: Any, attention: Any, share: Share | None) -> tuple[int, int, int]:
    """Query heads, key/value heads and their size; none where attention is latent."""
    if is_latent(attention):
        check_latent(attention, config)
        return 0, 0, 0
    dim = int(attention.head_dim)
    heads = (int(config.num_attention_heads), int(config.num_key_value_heads), dim)
    if share is not None:
        heads = (share.heads.size, share.kv_heads.size, dim)
    if dim % 16 or heads[0] % heads[1] or heads[0] // heads[1] * CHUNK_TOKENS > MOST_QUERIES:
        raise Unlike(f"heads of {dim}, {heads[0]} over {heads[1]}, fit no kernel")
    return heads


@dataclass(frozen=True)
class _Reader:
    """Packs what belongs together into one linear map; `index` numbers the modules that adapters may target.

    `first` is the first expert that is held.
    """

    kernels: Kernels
    index: Mapping[str, int]
    config: Any
    first: int
    angles: Angles
    memory: LargePages = field(default_factory=LargePages)  # of what is packed

    def layer(self, path: str, layer: Any) -> Layer:
        """One of transformers' decoder layers."""
        attention = layer.self_attn
        norms = [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
        head_norms = HeadNorms(norms[0].weight, norms[1].weight, norms[0].variance_epsilon) if norms else NO_NORMS
        at, mlp = f"{path}.self_attn", f"{path}.mlp"
        whole_at, whole = network_of(mlp, layer.mlp)
        return Layer(
            attention_norm=layer.input_layernorm.weight,
            qkv=self.fused({f"{at}.{name}": attention.get_submodule(name) for name in self._first(attention)}),
            head_norms=head_norms,
            latent=self._latent(at, attention) if is_latent(attention) else None,
            output=self.fused({f"{at}.o_proj": attention.o_proj}),
            mlp_norm=layer.post_attention_layernorm.weight,
            network=self._network(whole_at, whole) if whole is not None else None,
            experts=self._experts(mlp, layer.mlp) if whole is not layer.mlp else None,
        )

    def fused(self, linears: Mapping[str, nn.Linear]) -> Linear:
        """Linears of one input, by path, as one map with their outputs side by side."""
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
        """What takes a layer's input in its attention, and in an indexer that has something to choose."""
        indexed = ("indexer.wk", "indexer.weights_proj") if self._indexes(attention) else ()
        return *names_of("qkv", attention), *indexed

    def _indexes(self, attention: Any) -> bool:
        some = attends_to_some(self.config, len(self.angles.cos))
        return some and getattr(attention, "indexer", None) is not None

    def _latent(self, path: str, attention: Any) -> Latent:
        def fused(name: str) -> Linear:
            return self.fused({f"{path}.{name}": attention.get_submodule(name)})

        queries = fused("q_b_proj") if attention.q_b_proj is not None else None
        indexed = fused("indexer.wq_b") if self._indexes(attention) else None
        module = self.index.get(f"{path}.kv_b_proj")
        return read_latent(attention, queries, indexed, module, self.angles, self.kernels, self.memory)

    def _network(self, path: str, mlp: Any) -> Network:
        return Network(
            gate_up=self.fused({f"{path}.{name}": getattr(mlp, name) for name in names_of("gate_up", mlp)}),
            down=self.fused({f"{path}.down_proj": mlp.down_proj}),
        )

    def _experts(self, path: str, mlp: Any) -> Experts:
        experts, family = mlp.experts, self.config.model_type
        check_experts(experts)
        gate_up, down = experts.gate_up_proj, experts.down_proj
        if mlp.gate.weight.shape[0] > MOST_EXPERTS:
            raise Unlike(f"{mlp.gate.weight.shape[0]} experts fit no kernel")
        inner = gate_up.shape[1] // 2
        columns = {f"{path}.experts.gate_proj": 0, f"{path}.experts.up_proj": inner}
        return Experts(
            router=self._grouped(mlp.gate) if family in GROUPED else self._router(self.kernels, mlp.gate.weight),
            each=int(mlp.gate.top_k),
            first=self.first,
            whole=family == "mixtral" or bool(mlp.gate.norm_topk_prob),
            rounded=family == "qwen3_moe",
            gate_up=_stack(gate_up, self._targets(columns, gate_up.shape[2], inner)),
            down=_stack(down, self._targets({f"{path}.experts.down_proj": 0}, inner, down.shape[1])),
        )

    def _router(self, kernels: Kernels, weight: torch.Tensor) -> Linear:
        return kernels.pack(weight, None, self._targets({}, 0, 0), self.memory)

    def _grouped(self, gate: Any) -> Grouped:
        kernels = find_kernels(torch.float32, gate.weight.device)
        assert kernels is not None  # noqa: S101 - those of the base's dtype are in the same library
        return Grouped(
            router=self._router(kernels, gate.weight.float()),
            bias=gate.e_score_correction_bias.float().contiguous(),
            groups=int(gate.num_group),
            chosen=int(gate.topk_group),
            factor=float(gate.routed_scaling_factor),
        )

    def _targets(self, columns: Mapping[str, int], wide: int, high: int) -> torch.Tensor:
        """Of modules of one shape, those that adapters may target, by path and first column."""
        rows = [(self.index[path], at, wide, high) for path, at in columns.items() if path in self.index]
        return torch.tensor(rows, dtype=torch.int64).view(-1, 4)


def _stack(weight: torch.Tensor | KeptStack, targets: torch.Tensor) -> Stack:
    if isinstance(weight, KeptStack):
        if (stack := weight.coded(targets)) is None:
            raise Unlike("its experts stay quantised as no kernel reads them")
        return stack
    if not weight.is_contiguous():
        raise Unlike("its experts do not lie one after another")
    return Stack(weight.shape, weight, targets=targets)


def _angles(rotary: Any, base: Base, positions: int) -> Angles:
    """The module's own cosines and sines, in the base's dtype as it gives them to its layers."""
    like = torch.empty(0, dtype=base.dtype, device=base.device)
    cos, sin = rotary(like, torch.arange(positions, device=base.device)[None])
    half = cos.shape[-1] // 2  # both halves of a head turn by the same angles
    return Angles(cos[0, :, :half], sin[0, :, :half])
