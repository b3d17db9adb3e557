"""The lean training pass: a llama-like base's forward and backward written out, on own kernels and without autograd.

Products run over all rows at once. Each layer keeps what is costly to compute again, but no norms or activations.
Frozen weights need no gradients, so a layer costs twice its forward. Letters in shapes: T rows, H hidden, Q query and
K key/value heads, D head size, I the network's inner size. Tests compare it with the generic pass.

With several ranks, each has its share of heads and of I, or of experts. The ranks sum their contributions to the
residual stream in the forward, and the gradients of what they read from it in the backward.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from mint_engine.adapters.adapter import Module
from mint_engine.kernels.library import Kernels
from mint_engine.kernels.row_structs import Norm
from mint_engine.model.base import Base
from mint_engine.model.llama_like import embedded
from mint_engine.model.upcast import upcasts
from mint_engine.parallel.group import Group
from mint_engine.training.batch import Batch, Score
from mint_engine.training.head import HEAD_ROWS, Head, differentiated, multiplied
from mint_engine.training.joint import norm_jointly, norm_jointly_back
from mint_engine.training.kernels import TopKMask, TrainingKernels, Trees, lay_trees
from mint_engine.training.latent import LeanLatent, SavedLatent
from mint_engine.training.lean_experts import LeanExperts, SavedExperts
from mint_engine.training.llama import Layer, Llama, Network, read_llama
from mint_engine.training.pieces import PIECE_ROWS
from mint_engine.training.products import Rows, Saved, add_gradients, multiply, multiply_back, rows_back, straight

MOST_ROWS = 9 * PIECE_ROWS // 4  # at once: fits a policy's step of 32 completions of 64 tokens, with its prompts
KEPT_BYTES = 3 << 29  # kept for the backward at most, unless a single piece needs more
LOGITS_BYTES = 1 << 26  # of logits at once, unless `HEAD_ROWS` rows need more


@dataclass(frozen=True)
class _Laid:
    """A batch in the form that the kernels take."""

    batch: Batch
    trees: Trees
    rows: Rows


@dataclass(frozen=True)
class _SavedNetwork:
    """What a network's backward needs from its forward."""

    gate_up: torch.Tensor  # [T, 2 I]
    products: tuple[Saved, Saved]  # gate_up, down


@dataclass(frozen=True)
class _SavedHeads:
    """What attention's backward needs from its forward."""

    raw: torch.Tensor | None  # [T, (Q + 2 K) D]: queries, keys, values before the heads' norms, if any
    qkv: torch.Tensor  # the same, as attention takes them
    attended: torch.Tensor  # [T, Q D]
    sums: torch.Tensor  # [T, Q]
    product: Saved


@dataclass(frozen=True)
class _SavedLayer:
    """What a layer's backward needs from its forward."""

    before: torch.Tensor  # [T, H]: the layer's input
    attention: _SavedHeads | SavedLatent
    output: Saved
    attended: torch.Tensor | None  # [T, H]: attention's output, if that is normed
    between: torch.Tensor  # [T, H]: the residual stream after attention
    network: _SavedNetwork | None
    experts: SavedExperts | None
    given: torch.Tensor | None  # [T, H]: the network's and experts' output, if that is normed


class LeanPass:
    """Made from a base, whose modules keep sharing its weights."""

    def __init__(
        self,
        base: Base,
        modules: Mapping[str, Module],
        kernels: Kernels,
        training: TrainingKernels,
        group: Group | None,
    ) -> None:
        """With a `group`, the base is a rank's share. Raises Unlike if it is not llama-like."""
        self._llama: Llama = read_llama(base, modules, group.share if group is not None else None)
        self._kernels, self._training, self._group = kernels, training, group
        self._experts = LeanExperts(kernels, training, self._llama.numerics.activation)
        self._latents = LeanLatent(kernels, training, self._llama.layers[0].angles)
        self.head = _head(self._llama, training, group)
        self.name = f"lean ({kernels.variant})"
        self.most_rows = min(MOST_ROWS, KEPT_BYTES // kept_bytes(self._llama))

    def run(self, batch: Batch, score: Score) -> Iterator[None]:
        """As `GenericPass.run`; yields after every large product, so that a tenant's step may run in between."""
        llama, laid = self._llama, _Laid(batch, lay_trees(batch.trees), straight(batch))
        hidden = functional.embedding(embedded(batch.tokens, llama.placeholders), llama.embedding)
        if llama.numerics.embedding_scale != 1:
            hidden *= llama.numerics.embedding_scale
        saved: list[_SavedLayer] = []
        chosen: TopKMask | None = None
        norms = [*(layer.norms.attention for layer in llama.layers), llama.norm]
        x = self._norm(hidden, norms[0])
        for layer, next_norm in zip(llama.layers, norms[1:], strict=True):
            hidden, x, found = yield from self._forward(layer, hidden, x, laid, next_norm, chosen)
            chosen = found.attention.choice if isinstance(found.attention, SavedLatent) else None
            if batch.segments:
                saved.append(found)
        gradient = yield from score(x)
        if gradient is None:
            return
        back = torch.zeros_like(hidden)
        self._training.norm_back(back, gradient, hidden, llama.norm, llama.epsilon)
        while saved:
            layer, found = llama.layers[len(saved) - 1], saved.pop()
            yield from self._backward(layer, found, back, laid, lowest=not saved)

    def _forward(
        self,
        layer: Layer,
        before: torch.Tensor,
        x: torch.Tensor,
        laid: _Laid,
        next_norm: Norm,
        chosen: TopKMask | None,
    ) -> Generator[None, None, tuple[torch.Tensor, torch.Tensor, _SavedLayer]]:
        """A layer's input and its norm -> its output, that one's norm by `next_norm`, and what the backward needs.

        `chosen` is the previous layer's choice of rows, which this one may share.
        """
        attention: _SavedHeads | SavedLatent
        if layer.latent is not None:
            attention = yield from self._latents.forward(layer.latent, x, laid.rows, laid.trees, laid.batch, chosen)
        else:
            attention = yield from self._attend(layer, x, laid)
        output, saved_output = multiply(self._training, layer.output, attention.attended, laid.rows)
        between, attended = self._given(self._sum(output), layer.norms.attended)
        x = self._norm(between, layer.norms.network, before)
        yield
        parts, network, experts = [], None, None
        if layer.experts is not None:
            part, experts = yield from self._experts.forward(layer.experts, x, laid.batch)
            parts.append(part)
        if layer.network is not None:
            part, network = yield from self._network(layer.network, x, laid.rows)
            parts.append(part)
        hidden, given = self._given(self._sum(_added(parts)), layer.norms.given)
        saved = _SavedLayer(before, attention, saved_output, attended, between, network, experts, given)
        return hidden, self._norm(hidden, next_norm, between), saved

    def _given(self, whole: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what a layer part's output adds to the residual stream; and the output, if the backward needs it."""
        normed = self._norm(whole, norm) if norm else whole
        if self._llama.numerics.residual_scale != 1:
            normed *= self._llama.numerics.residual_scale
        return normed, whole if norm else None

    def _given_back(self, back: torch.Tensor, whole: torch.Tensor | None, norm: Norm) -> torch.Tensor:
        """The backward of `_given`: the gradient of what was added -> that of the layer part's output."""
        if self._llama.numerics.residual_scale != 1:
            back = back * self._llama.numerics.residual_scale
        if whole is None:
            return back
        found = torch.zeros_like(back)
        self._training.norm_back(found, back, whole, norm, self._llama.epsilon)
        return found

    def _attend(self, layer: Layer, x: torch.Tensor, laid: _Laid) -> Generator[None, None, _SavedHeads]:
        """x [T, H] -> what the backward needs, with the attended values."""
        training = self._training
        qkv, product = multiply(training, layer.qkv, x, laid.rows)
        yield
        norms, positions = layer.head_norms, laid.batch.positions
        if norms.late:
            training.rotate(qkv, layer.heads, positions, layer.angles)
        raw = qkv.clone() if norms.query else None
        if raw is not None and norms.joint is not None and self._group is not None:
            norm_jointly(qkv, layer.heads, norms, norms.joint, self._group.sum)
        elif raw is not None:
            training.head_norm(qkv, layer.heads, norms)
        if not norms.late:
            training.rotate(qkv, layer.heads, positions, layer.angles)
        return _SavedHeads(raw, qkv, *training.attend(qkv, laid.trees, layer.heads), product)

    def _network(
        self, network: Network, x: torch.Tensor, rows: Rows
    ) -> Generator[None, None, tuple[torch.Tensor, _SavedNetwork]]:
        """x [T, H] -> [T, H]"""
        gate_up, first = multiply(self._training, network.gate_up, x, rows)
        yield
        down, second = multiply(
            self._training, network.down, self._kernels.gate_mul(gate_up, self._llama.numerics.activation), rows
        )
        yield
        return down, _SavedNetwork(gate_up, (first, second))

    def _backward(
        self, layer: Layer, saved: _SavedLayer, back: torch.Tensor, laid: _Laid, *, lowest: bool
    ) -> Iterator[None]:
        """Turn `back` [T, H] from the gradient of a layer's output into that of its input; not for the lowest one."""
        llama, training = self._llama, self._training
        x = self._norm(saved.between, layer.norms.network)
        parts, given = [], self._given_back(back, saved.given, layer.norms.given)
        if saved.experts is not None:
            parts.append((yield from self._experts.backward(saved.experts, x, given, laid.batch)))
        if saved.network is not None:
            parts.append((yield from self._network_back(saved.network, x, given)))
        training.norm_back(back, self._sum(_added(parts)), saved.between, layer.norms.network, llama.epsilon)
        given = self._given_back(back, saved.attended, layer.norms.attended)
        attended = multiply_back(training, saved.output, given, saved.attention.attended)
        yield
        x = self._norm(saved.before, layer.norms.attention)
        if isinstance(saved.attention, SavedLatent):
            narrow = yield from self._latents.backward(
                saved.attention, x, attended, laid.rows, laid.trees, laid.batch
            )
        else:
            narrow = yield from self._attend_back(layer, saved.attention, x, attended, laid)
        if not lowest:
            training.norm_back(back, self._sum(narrow), saved.before, layer.norms.attention, llama.epsilon)
        yield

    def _attend_back(
        self, layer: Layer, saved: _SavedHeads, x: torch.Tensor, dattended: torch.Tensor, laid: _Laid
    ) -> Generator[None, None, torch.Tensor]:
        """Result and input of `_attend`, and the gradient of `attended` [T, Q D] -> that of x [T, H]."""
        training, heads = self._training, layer.heads
        qkv = training.attend_back(saved.qkv, saved.attended, saved.sums, dattended, laid.trees, heads)
        yield
        norms, positions = layer.head_norms, laid.batch.positions
        if not norms.late:
            training.rotate(qkv, heads, positions, layer.angles, back=True)
        if saved.raw is not None and norms.joint is not None and self._group is not None:
            norm_jointly_back(qkv, saved.raw, heads, norms, norms.joint, self._group.sum)
        elif saved.raw is not None:
            training.head_norm_back(qkv, saved.raw, heads, norms)
        if norms.late:
            training.rotate(qkv, heads, positions, layer.angles, back=True)
        return multiply_back(training, saved.product, qkv, x)

    def _network_back(
        self, saved: _SavedNetwork, x: torch.Tensor, dy: torch.Tensor
    ) -> Generator[None, None, torch.Tensor]:
        """`saved` and input of `_network`, and its output's gradient [T, H] -> that of x [T, H]."""
        first, second = saved.products
        inner, backs = rows_back(self._training, second, dy)
        yield
        wide, gated = self._training.gate_mul_back(saved.gate_up, inner, self._llama.numerics.activation)
        add_gradients(self._training, second, dy, backs, gated)
        yield
        narrow, backs = rows_back(self._training, first, wide)
        yield
        add_gradients(self._training, first, wide, backs, x)
        return narrow

    def _sum(self, partial: torch.Tensor) -> torch.Tensor:
        return partial if self._group is None else self._group.sum(partial)

    def _norm(self, hidden: torch.Tensor, norm: Norm, more: torch.Tensor | None = None) -> torch.Tensor:
        """Add `more` to `hidden` in place and return its norm; without a norm, hidden itself."""
        return self._kernels.add_norm(hidden, more, norm, self._llama.epsilon)


def _added(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum the outputs of experts and network [T, H], of which one may be missing, in the first one's memory."""
    first, *others = parts
    for each in others:
        first.add_(each)
    return first


def _head(llama: Llama, training: TrainingKernels, group: Group | None) -> Head:
    """Return a base's head. All ranks use the same number of rows, though their shares may differ."""
    linear, weight = llama.head, llama.head.weight.detach()
    bounded = llama.numerics.logit_divisor or llama.numerics.logit_cap or linear.bias is not None
    if group is not None or bounded or upcasts(weight.dtype, weight.device):
        return Head(differentiated(llama.logits), training, group)
    room = LOGITS_BYTES // (weight.shape[0] * weight.itemsize) // HEAD_ROWS * HEAD_ROWS
    rows = min(max(HEAD_ROWS, room), PIECE_ROWS)
    return Head(multiplied(weight, rows), training, rows=rows)


def kept_bytes(llama: Llama) -> int:
    """Return the bytes that all layers keep of one row for the backward."""
    numbers = 0
    for layer in llama.layers:
        (_, qkv, hidden), attended = layer.qkv.weight.shape, layer.output.weight.shape[2]
        numbers += 2 * hidden + qkv * (2 if layer.head_norms.query else 1) + attended
        numbers += sum(hidden for norm in (layer.norms.attended, layer.norms.given) if norm)
        if layer.network is not None:
            numbers += layer.network.gate_up.weight.shape[1]
        if layer.experts is not None:
            inner = layer.experts.down.weight.shape[2]
            numbers += layer.experts.per_token * (2 * inner + hidden)
    return numbers * llama.embedding.itemsize
