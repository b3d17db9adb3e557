"""The lean pass: own kernels compute a whole step of a llama-like base in one call, without transformers' modules.

Letters in shapes: T tokens of a step, H hidden, Q query heads, K key/value heads, D head size, I the network's inner
size. `mint_engine.model.generic` computes the same for every base; tests compare the two.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mint_contracts.errors import Internal
from mint_contracts.layer_groups import PAGE_TOKENS, first_seen, pages_for
from mint_engine.kernels.attention_structs import HeadsStruct, heads_struct, latent_struct
from mint_engine.kernels.expert_structs import GroupedRouter, experts_struct
from mint_engine.kernels.library import Kernels
from mint_engine.kernels.linear_structs import LinearStruct, address, linear_struct
from mint_engine.kernels.row_structs import activation_struct, norm_struct
from mint_engine.kernels.structs import (
    BaseStruct,
    LayerStruct,
    StepStruct,
    arrival_struct,
    slots_struct,
    workspace_struct,
)
from mint_engine.model.cache import Cache
from mint_engine.model.expert_buffers import NO_PAIRS, ExpertBuffers
from mint_engine.model.head_layers import CHUNK_TOKENS
from mint_engine.model.lean_layers import MAX_FUSED_MODULES, Layer, Llama, latent_queries
from mint_engine.model.llama_like import embedded
from mint_engine.model.lora import merge_spans, work_items
from mint_engine.model.span import Span
from mint_engine.parallel.shared_memory import SharedMemory
from mint_engine.residency.arrival import Arrival, NotArrived
from mint_engine.residency.slots import Slots

_NO_LINEARS = LinearStruct(), LinearStruct()
PATIENCE_S = 0.05  # for the rest of an arriving adapter: requests that come meanwhile may begin that much later
_KEPT_LOGITS_BYTES = 64 << 20  # 256 rows of a vocabulary of 128,000; larger ones, for prompts' scores, are not kept


@dataclass(frozen=True)
class Step:
    """One step's rows, planned once and used by every layer."""

    positions: torch.Tensor  # [T] int64
    places: torch.Tensor  # [G, T] int64: where each token's key and value go, for each group of layers
    # [G, n, 4] int64: first row, tokens, position of the first, where its pages begin in `tables`
    chunks: torch.Tensor
    tables: torch.Tensor  # int32
    items: torch.Tensor  # [n, 3] int32: first row, rows, slot


class Lean:
    """A base with its slots and cache. Pages of keys and values are laid out in pairs, as the kernels expect."""

    def __init__(
        self, llama: Llama, kernels: Kernels, slots: Slots, cache: Cache, shared: SharedMemory | None
    ) -> None:
        """`shared` is the memory that ranks share; `llama` and `slots` are then its shares."""
        self._llama, self._kernels, self._slots, self._shared = llama, kernels, slots, shared
        layers = [
            _layer_struct(layer, cache.of(at), cache.groups.places[at][0]) for at, layer in enumerate(llama.layers)
        ]
        numerics = llama.numerics
        self._base = BaseStruct(
            address(llama.embedding), (LayerStruct * len(layers))(*layers), len(layers), norm_struct(llama.norm),
            linear_struct(llama.head), llama.scale, llama.epsilon, activation_struct(numerics.activation),
            numerics.embedding_scale, numerics.residual_scale, numerics.logit_divisor, numerics.logit_cap,
        )  # fmt: skip
        self._cache = cache
        self._buffers: tuple[torch.Tensor, ...] = ()
        self._logits = llama.embedding.new_empty((0, llama.head.out_features))
        experts = [layer.experts for layer in llama.layers if layer.experts is not None]
        self._expert_buffers = ExpertBuffers(experts, cache) if experts else None
        self._targets = llama.targets
        self.name = f"lean ({kernels.variant})"

    def run(
        self, tokens: Sequence[int], spans: Sequence[Span], keep: Sequence[int], arrival: Arrival | None = None
    ) -> torch.Tensor:
        """As `Forward.run`, in the base's dtype; with several ranks, each writes its share of the vocabulary."""
        self._check(spans)
        planned = plan_step(spans, self._slots, len(tokens), self._cache.groups.windows)
        kept = torch.tensor(keep)
        ids = embedded(torch.tensor(tokens), self._llama.placeholders)
        logits, own = self._logits_for(len(keep))
        buffers = self._expert_buffers
        paired = buffers.pairs_for(len(tokens)) if buffers is not None else NO_PAIRS
        needed = self._needed(spans[0].slot) if arrival is not None else None
        step = StepStruct(
            len(tokens), address(ids), address(planned.positions), address(planned.places),
            address(planned.chunks), planned.chunks.shape[1], address(planned.tables),
            address(planned.items), planned.items.shape[0], address(kept), len(keep), address(own, rows_apart=True),
            logits.shape[1], address(paired.routes), address(paired.weights),
            arrival_struct(arrival, needed, PATIENCE_S),
        )  # fmt: skip
        workspace, shared = workspace_struct(self._workspace(len(tokens)), paired.buffers), self._shared
        peers = shared.struct if shared else None
        if not self._kernels.run(self._base, slots_struct(self._slots), step, workspace, peers):
            raise NotArrived
        if shared is not None:
            shared.check()
        if buffers is not None:
            buffers.keep_routes(planned.places[0])
        return logits

    def _check(self, spans: Sequence[Span]) -> None:
        """Raise Internal for positions without rotary angles: kernels read these unchecked."""
        if (longest := max(span.position + span.length for span in spans)) > (most := self._llama.positions):
            raise Internal("step", f"has a request of {longest} tokens, and the base was read for {most}")

    def _needed(self, slot: int) -> torch.Tensor:
        """Bytes of a slot's row that each layer needs [layers] int64; the last layer needs all of them."""
        ends = self._slots.ends(slot)
        needed = [max((ends[module] for module in modules), default=0) for modules in self._targets]
        return torch.tensor([*needed[:-1], max(ends)], dtype=torch.int64)

    def _logits_for(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All logits [rows, V], and the columns that are computed here. The next step overwrites them."""
        if self._shared is None:
            logits = self._logits[:rows]
            if len(logits) < rows:
                logits = self._logits.new_empty((rows, self._logits.shape[1]))
                if logits.nbytes <= _KEPT_LOGITS_BYTES:
                    self._logits = logits
            return logits, logits
        logits = self._shared.logits[:rows]
        return logits, logits[:, slice(*self._shared.share.vocabulary)]

    def _workspace(self, rows: int) -> tuple[torch.Tensor, ...]:
        """A step's working memory, kept between steps: fresh memory costs more than using it."""
        if not self._buffers or self._buffers[0].shape[0] < rows:
            llama = self._llama
            hidden, latent = llama.embedding.shape[1], llama.layers[0].latent
            widths = [_widths(layer) for layer in llama.layers]
            wide, narrow = max(hidden, *(wide for wide, _ in widths)), max(narrow for _, narrow in widths)
            middle = MAX_FUSED_MODULES * -(-self._slots.max_rank // 2) * 2
            own = (torch.float32, wide), (torch.float32, middle)  # for what adapters add
            dtype = llama.embedding.dtype
            others = (dtype, latent.width if latent else 0), (torch.int32, latent.top_k if latent else 0)
            shapes = [*((dtype, width) for width in (hidden, hidden, hidden, wide, narrow)), *own, *others]
            self._buffers = tuple(torch.empty((rows, width), dtype=dtype) for dtype, width in shapes)
        return self._buffers


def _layer_struct(layer: Layer, pool: torch.Tensor, group: int) -> LayerStruct:
    network = layer.network
    gate_up, down = (linear_struct(network.gate_up), linear_struct(network.down)) if network else _NO_LINEARS
    experts = ctypes.pointer(experts_struct(layer.experts)) if layer.experts else None
    latent = ctypes.pointer(latent_struct(layer.latent)) if layer.latent else None
    return LayerStruct(
        norm_struct(layer.attention_norm), linear_struct(layer.qkv), linear_struct(layer.output),
        norm_struct(layer.post_attention_norm), norm_struct(layer.mlp_norm), gate_up, down, experts,
        norm_struct(layer.post_mlp_norm), heads_struct(layer.heads) if layer.heads else HeadsStruct(), latent,
        address(pool), group,
    )  # fmt: skip


def _widths(layer: Layer) -> tuple[int, int]:
    """The widest outputs of a layer's attention, network or router for one row, and the widest inputs of these."""
    wide, narrow = layer.qkv.out_features, layer.output.in_features
    for queries in latent_queries(layer):
        wide, narrow = max(wide, queries.out_features), max(narrow, queries.in_features)
    if layer.network is not None:
        wide = max(wide, layer.network.gate_up.out_features)
        narrow = max(narrow, layer.network.down.in_features)
    if layer.experts is not None:
        rows = layer.experts.router.router.in_features if isinstance(layer.experts.router, GroupedRouter) else 0
        wide = max(wide, rows + layer.experts.count)
    return wide, narrow


def plan_step(spans: Sequence[Span], slots: Slots, rows: int, windows: Sequence[int | None]) -> Step:
    """Plan a step for groups of layers with these windows; spans cover its rows in order.

    Pages that lie before a window are left out: its table begins where the first of all pages would be.
    """
    positions, places = np.zeros(rows, np.int64), np.zeros((len(windows), rows), np.int64)
    tables: list[int] = []
    chunks: list[list[tuple[int, int, int, int]]] = [[] for _ in windows]
    for span in spans:
        end = span.position + span.length
        used, rows_of, single = pages_for(end), slice(span.row, span.row + span.length), span.length == 1
        at = span.position if single else np.arange(span.position, end)
        positions[rows_of] = at
        for group, (window, pages) in enumerate(zip(windows, (span.pages, *span.others), strict=True)):
            first = first_seen(span.position, window)
            table = pages[first:used]
            page = table[-1] if single else np.asarray(table)[at // PAGE_TOKENS - first]
            places[group, rows_of] = page * PAGE_TOKENS + at % PAGE_TOKENS
            chunks[group] += [
                (span.row + done, min(CHUNK_TOKENS, span.length - done), span.position + done, len(tables) - first)
                for done in range(0, span.length, CHUNK_TOKENS)
            ]
            tables += table
    return Step(
        positions=torch.from_numpy(positions),
        places=torch.from_numpy(places),
        chunks=torch.tensor(chunks, dtype=torch.int64).view(len(windows), -1, 4),
        tables=torch.from_numpy(np.array(tables, np.int32)),
        items=work_items(merge_spans(spans), slots),
    )
