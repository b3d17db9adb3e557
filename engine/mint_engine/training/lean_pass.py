"""The lean training pass: a llama-like base's forward and backward written out, on own kernels and without autograd.

Products run over all rows at once; of each layer what is costly to compute again is kept, and norms and activations
are not. Frozen weights need no gradients, so each layer is twice its forward. Letters in shapes: T rows, H hidden, Q
query and K key/value heads, D head size, I the network's inner size. Tests hold it against the generic pass.

Of several ranks each has its share of heads and of I, and they add up what each of them gives to the residual stream,
and on the way back to what came out of it.
"""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from mint_engine.adapters.adapter import Module
from mint_engine.kernels.library import Kernels
from mint_engine.model.base import Base
from mint_engine.parallel.group import Group
from mint_engine.training.batch import Batch, Score
from mint_engine.training.head import Head
from mint_engine.training.kernels import TrainingKernels, Trees, lay_trees
from mint_engine.training.lean_experts import Kept as KeptExperts
from mint_engine.training.lean_experts import LeanExperts
from mint_engine.training.llama import Experts, Layer, Llama, Network, Product, read_llama

_Middles = list[torch.Tensor]  # x A^T scaling [n, r] of each segment's part of a product, in their order


@dataclass(frozen=True)
class _KeptNetwork:
    """What a network's backward needs of its forward."""

    network: Network
    gate_up: torch.Tensor  # [T, 2 I]
    middles: tuple[_Middles, _Middles]  # of gate_up, down


@dataclass(frozen=True)
class _Kept:
    """What a layer's backward needs of its forward."""

    before: torch.Tensor  # [T, H]: what came in
    raw: torch.Tensor | None  # [T, (Q + 2 K) D]: queries, keys, values before norms of heads, where there are any
    qkv: torch.Tensor  # the same, turned
    attended: torch.Tensor  # [T, Q D]
    sums: torch.Tensor  # [T, Q]
    between: torch.Tensor  # [T, H]: after attention
    middles: tuple[_Middles, _Middles]  # of qkv, output
    network: _KeptNetwork | KeptExperts


class LeanPass:
    """Made from a base; its modules see the same weights as before."""

    def __init__(
        self,
        base: Base,
        modules: Mapping[str, Module],
        kernels: Kernels,
        training: TrainingKernels,
        group: Group | None = None,
    ) -> None:
        """With a `group` the base is a rank's share. Raises Unlike where it is not llama-like."""
        self._llama: Llama = read_llama(base, modules, group.share if group is not None else None)
        self._kernels, self._training, self._group = kernels, training, group
        self._experts = LeanExperts(kernels, training)
        self.head = Head(self._llama.head, training, group)
        self.name = f"lean ({kernels.variant})"

    def run(self, batch: Batch, score: Score) -> Iterator[None]:
        """As `GenericPass.run`; pauses after every large product: between two of them a tenant's step may go."""
        llama, trees = self._llama, lay_trees(batch.trees)
        hidden = functional.embedding(batch.tokens, llama.embedding)
        kept = []
        for layer in llama.layers:
            hidden, found = yield from self._forward(layer, hidden, batch, trees)
            if batch.segments:
                kept.append(found)
        gradient = yield from score(self._norm(hidden, llama.norm))
        if gradient is None:
            return
        back = torch.zeros_like(hidden)
        self._training.norm_back(back, gradient, hidden, llama.norm, llama.epsilon)
        while kept:
            layer, found = llama.layers[len(kept) - 1], kept.pop()
            yield from self._backward(layer, found, back, batch, trees, lowest=not kept)

    def _forward(
        self, layer: Layer, before: torch.Tensor, batch: Batch, trees: Trees
    ) -> Generator[None, None, tuple[torch.Tensor, _Kept]]:
        llama, training = self._llama, self._training
        qkv, qkv_middles = self._product(layer.qkv, self._norm(before, layer.attention_norm), batch)
        yield
        raw = qkv.clone() if layer.head_norms else None
        if layer.head_norms:
            training.head_norm(qkv, llama.heads, *layer.head_norms, llama.epsilon)
        training.turn(qkv, llama.heads, batch.positions, llama.cos, llama.sin)
        attended, sums = training.attend(qkv, trees, llama.heads)
        output, output_middles = self._product(layer.output, attended, batch)
        between = self._sum(output).add_(before)
        yield
        x = self._norm(between, layer.mlp_norm)
        inner: _KeptNetwork | KeptExperts
        if isinstance(layer.network, Experts):
            given, inner = yield from self._experts.forward(layer.network, x, batch)
        else:
            given, inner = yield from self._network(layer.network, x, batch)
        middles = (qkv_middles, output_middles)
        return self._sum(given).add_(between), _Kept(before, raw, qkv, attended, sums, between, middles, inner)

    def _network(
        self, network: Network, x: torch.Tensor, batch: Batch
    ) -> Generator[None, None, tuple[torch.Tensor, _KeptNetwork]]:
        """x [T, H] -> [T, H]"""
        gate_up, gate_up_middles = self._product(network.gate_up, x, batch)
        yield
        down, down_middles = self._product(network.down, self._kernels.silu_mul(gate_up), batch)
        yield
        return down, _KeptNetwork(network, gate_up, (gate_up_middles, down_middles))

    def _backward(
        self, layer: Layer, kept: _Kept, back: torch.Tensor, batch: Batch, trees: Trees, *, lowest: bool
    ) -> Iterator[None]:
        """`back` [T, H], the gradient of what the layer gave, becomes that of what it took, but for the lowest."""
        llama, training = self._llama, self._training
        qkv_middles, output_middles = kept.middles
        x = self._norm(kept.between, layer.mlp_norm)
        if isinstance(kept.network, KeptExperts):
            narrow = yield from self._experts.backward(kept.network, x, back, batch)
        else:
            narrow = yield from self._network_back(kept.network, x, back, batch)
        training.norm_back(back, self._sum(narrow), kept.between, layer.mlp_norm, llama.epsilon)
        attended = self._product_back(layer.output, back, kept.attended, output_middles, batch)
        yield
        qkv = training.attend_back(kept.qkv, kept.attended, kept.sums, attended, trees, llama.heads)
        training.turn(qkv, llama.heads, batch.positions, llama.cos, llama.sin, back=True)
        if layer.head_norms and kept.raw is not None:
            training.head_norm_back(qkv, kept.raw, llama.heads, *layer.head_norms, llama.epsilon)
        x = self._norm(kept.before, layer.attention_norm)
        narrow = self._product_back(layer.qkv, qkv, x, qkv_middles, batch)
        if not lowest:
            training.norm_back(back, self._sum(narrow), kept.before, layer.attention_norm, llama.epsilon)
        yield

    def _network_back(
        self, kept: _KeptNetwork, x: torch.Tensor, dy: torch.Tensor, batch: Batch
    ) -> Generator[None, None, torch.Tensor]:
        """What `_network` kept and took, and the gradient of what it gave [T, H] -> that of x [T, H]."""
        network = kept.network
        gate_up_middles, down_middles = kept.middles
        inner = self._product_back(network.down, dy, self._kernels.silu_mul(kept.gate_up), down_middles, batch)
        yield
        wide = self._training.silu_mul_back(kept.gate_up, inner)
        narrow = self._product_back(network.gate_up, wide, x, gate_up_middles, batch)
        yield
        return narrow

    def _sum(self, partial: torch.Tensor) -> torch.Tensor:
        return partial if self._group is None else self._group.sum(partial)

    def _norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self._kernels.add_norm(hidden, None, weight, self._llama.epsilon)

    def _product(self, product: Product, x: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, _Middles]:
        """x [T, in] -> y [T, out] with every row's adapter, and what its backward needs."""
        y, middles = functional.linear(x, product.weight, product.bias), []
        for segment in batch.segments:
            rows = slice(segment.start, segment.stop)
            for target in product.targets:
                part = segment.parts.get(target.path)
                if part is not None:
                    own = y[rows, target.columns]
                    middles.append(self._training.adapt(own, x[rows], part.a[0], part.b[0], part.scaling))
        return y, middles

    def _product_back(
        self, product: Product, dy: torch.Tensor, x: torch.Tensor, middles: _Middles, batch: Batch
    ) -> torch.Tensor:
        """dy [T, out] -> dx [T, in]; adds to the gradients of A and B."""
        dx, kept = dy @ product.weight, iter(middles)
        for segment in batch.segments:
            rows = slice(segment.start, segment.stop)
            for target in product.targets:
                part = segment.parts.get(target.path)
                if part is not None:
                    given = dy[rows, target.columns]
                    back = self._training.adapt(dx[rows], given, part.b[0], part.a[0], part.scaling)
                    self._training.outer(back, x[rows], part.a_gradient[0])
                    self._training.outer(next(kept), given, part.b_gradient[0])
        return dx
