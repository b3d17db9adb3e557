"""The lean pass: a llama-like base computed by fused products and own kernels, without transformers' modules.

Letters in shapes: T tokens of a step, H hidden, Q query heads, K key/value heads, D head size, I the network's inner
size. `mint_engine.generic` computes the same for every base; tests hold the two against each other.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from mint_engine.cache import KvCache
from mint_engine.kernels.library import ROWS, Kernels
from mint_engine.lean_layers import CHUNK_TOKENS, Layer, Llama, Product
from mint_engine.lora import merge_spans, with_adapters
from mint_engine.paged import Span
from mint_engine.pages import PAGE_TOKENS, pages_for
from mint_engine.slots import Slots

# A single row takes another kernel of oneDNN, which rounds differently: a row must not depend on how many there are.
_FEWEST_ROWS = 2


@dataclass(frozen=True)
class Step:
    """One step's rows, sorted out once and used by every layer."""

    positions: torch.Tensor  # [T] int64
    places: torch.Tensor  # [T] int64: where each token's key and value go
    attention: torch.Tensor  # [n, 4] int64, see Kernels.attend
    tables: torch.Tensor  # int32
    adapters: torch.Tensor  # [n, 3] int32, see Kernels.lora


class Lean:
    """A base with its slots and cache. The cache's pages are laid out in pairs, as the kernels want them."""

    def __init__(self, llama: Llama, kernels: Kernels, slots: Slots, cache: KvCache) -> None:
        self._llama, self._kernels, self._slots, self._cache = llama, kernels, slots, cache
        self.name = f"lean ({kernels.variant})"

    def run(self, tokens: Sequence[int], spans: Sequence[Span], keep: Sequence[int]) -> torch.Tensor:
        """As `Forward.run`, in the base's dtype."""
        llama, kernels, count = self._llama, self._kernels, len(tokens)
        padded = [*tokens, *itertools.repeat(0, _FEWEST_ROWS - count)]
        step = plan_step(spans, self._slots, len(padded))
        hidden = functional.embedding(torch.tensor(padded), llama.embedding)
        delta: torch.Tensor | None = None
        for at, layer in enumerate(llama.layers):
            delta = self._layer(at, layer, hidden, delta, step)
        rows = [*keep, *itertools.repeat(0, _FEWEST_ROWS - len(keep))]
        kept = torch.tensor(rows)
        last = kernels.add_norm(
            hidden.index_select(0, kept), delta.index_select(0, kept) if delta is not None else None,
            llama.norm, llama.epsilon,
        )  # fmt: skip
        return llama.head(last)[: len(keep)]

    def _layer(
        self, at: int, layer: Layer, hidden: torch.Tensor, delta: torch.Tensor | None, step: Step
    ) -> torch.Tensor:
        """Advance hidden [T, H] in place by `delta` and the attention; returns the network's output [T, H]."""
        llama, kernels = self._llama, self._kernels
        pool = self._cache.pool[at]
        x = kernels.add_norm(hidden, delta, layer.attention_norm, llama.epsilon)
        qkv = self._product(layer.qkv, x, step)
        kernels.rope(qkv, llama.heads, step.positions, llama.angles, layer.head_norms, step.places, pool)
        attended = kernels.attend(qkv, llama.heads, step.attention, step.tables, pool, llama.scale)
        x = kernels.add_norm(hidden, self._product(layer.output, attended, step), layer.mlp_norm, llama.epsilon)
        return self._product(layer.down, kernels.silu_mul(self._product(layer.gate_up, x, step)), step)

    def _product(self, product: Product, x: torch.Tensor, step: Step) -> torch.Tensor:
        y = product.linear(x)
        if step.adapters.shape[0] and product.parts.shape[0]:
            self._kernels.lora(y, x, step.adapters, self._slots, product.parts)
        return y


def plan_step(spans: Sequence[Span], slots: Slots, rows: int) -> Step:
    """Sort a step's spans out; they cover its rows in order, but for padding, which goes to the null page."""
    positions, places = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    tables: list[int] = []
    attention: list[tuple[int, int, int, int]] = []
    for span in spans:
        end = span.position + span.length
        table = span.pages[: pages_for(end)]
        if span.length == 1:
            positions[span.row] = span.position
            places[span.row] = table[-1] * PAGE_TOKENS + span.position % PAGE_TOKENS
            attention.append((span.row, 1, span.position, len(tables)))
        else:
            at = np.arange(span.position, end)
            positions[span.row : span.row + span.length] = at
            places[span.row : span.row + span.length] = (
                np.asarray(table)[at // PAGE_TOKENS] * PAGE_TOKENS + at % PAGE_TOKENS
            )
            attention += [
                (span.row + done, min(CHUNK_TOKENS, span.length - done), span.position + done, len(tables))
                for done in range(0, span.length, CHUNK_TOKENS)
            ]
        tables += table
    covered = spans[-1].row + spans[-1].length if spans else 0
    for row in range(covered, rows):
        attention.append((row, 1, 0, len(tables)))
        tables.append(0)
    return Step(
        positions=torch.from_numpy(positions),
        places=torch.from_numpy(places),
        attention=torch.tensor(attention, dtype=torch.int64).view(-1, 4),
        tables=torch.tensor(tables, dtype=torch.int32),
        adapters=torch.tensor(_split_by_slot(spans, slots), dtype=torch.int32).view(-1, 3),
    )


def _split_by_slot(spans: Sequence[Span], slots: Slots) -> list[tuple[int, int, int]]:
    """Work items of at most `ROWS` rows of one slot; neighbouring spans of a slot share them."""
    return [
        (segment.start + done, min(ROWS, segment.length - done), segment.slot)
        for segment in with_adapters(merge_spans(spans), slots)
        for done in range(0, segment.length, ROWS)
    ]
