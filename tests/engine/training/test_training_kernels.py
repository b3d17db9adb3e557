"""Each kernel of the lean training pass is checked against plain torch and its autograd."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn import functional

from mint_contracts.errors import Internal
from mint_engine.kernels.attention_structs import AttentionVariant, HeadNorms, Joint
from mint_engine.kernels.library import find_kernels
from mint_engine.kernels.linear_structs import Angles
from mint_engine.kernels.row_structs import SILU, Activation, Norm
from mint_engine.model import indexer
from mint_engine.model.selection import choose
from mint_engine.training.attend import visible
from mint_engine.training.kernels import ADAPTER_RUN, Heads, allocate_mask, lay_trees
from mint_engine.training.pieces import Tree
from tests.engine.training.kernel_inputs import DTYPES, kernels_of, near, normal

TREES = (Tree(0, 5, (3, 0, 7)), Tree(15, 1, (0,)), Tree(16, 70, (33, 1, 40)), Tree(160, 90, (2,)))
ROWS = 256  # the last four belong to no tree


def attend_plainly(qkv: torch.Tensor, heads: Heads, chosen: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
    """Compute attention [T, (Q + 2 K) D] -> [T, Q D] in float32; `chosen` has a mask [n, n] bool per tree."""
    q, k, v = qkv.view(ROWS, -1, heads.dim).tensor_split((heads.queries, heads.queries + heads.keys), dim=1)
    out = torch.zeros(ROWS, heads.queries, heads.dim)
    for at, tree in enumerate(TREES):
        span = slice(tree.row, tree.row + tree.rows)
        query, key, value = (each[span].transpose(0, 1)[None] for each in (q, k, v))
        seen = visible(tree.trunk, tree.branches, heads.variant.window or None)
        seen = seen & chosen[at] if chosen is not None else seen
        key, value = (each.repeat_interleave(heads.queries // heads.keys, dim=1) for each in (key, value))
        scores = query @ key.transpose(2, 3) * heads.scale
        if heads.variant.cap:
            scores = torch.tanh(scores / heads.variant.cap) * heads.variant.cap
        scores = scores.masked_fill(~seen, -torch.inf)
        if heads.variant.sinks is not None:
            beside = heads.variant.sinks[None, :, None, None].expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, beside], dim=-1)
        weights = scores.softmax(-1)[..., : tree.rows]
        out[span] = (weights @ value)[0].transpose(0, 1)
    return out.view(ROWS, -1)


@pytest.mark.parametrize("dim", [32, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_to_what_was_chosen(dtype: torch.dtype, dim: int) -> None:
    """A tree whose rows all see at most the limit is not restricted."""
    kernels, trees, heads = kernels_of(dtype), lay_trees(TREES), Heads(4, 4, dim, 0.2)
    asked, weights = normal(ROWS, 4 * dim, seed=3, dtype=dtype), normal(ROWS, 3, seed=4, dtype=dtype)
    choice, plainly = allocate_mask(TREES, 20), choose_plainly(asked, weights, dim, 20)
    assert choice is not None
    assert choice.of[:2].tolist() == [[-1, 0], [-1, 0]]
    kernels.select_top_k(asked, weights, dim, 20, trees, choice)
    qkv = normal(ROWS, heads.width, seed=1, dtype=dtype)
    dout = normal(ROWS, heads.queries * dim, seed=2, dtype=dtype)
    given = qkv.float().requires_grad_()
    expected = attend_plainly(given, heads, plainly)
    (back,) = torch.autograd.grad(expected, given, dout.float())
    out, sums = kernels.attend(qkv, trees, heads, choice)
    near(out, expected, dtype)
    near(kernels.attend_back(qkv, out, sums, dout, trees, heads, choice), back, dtype)


def choose_plainly(asked: torch.Tensor, weights: torch.Tensor, dim: int, most: int) -> list[torch.Tensor]:
    """Return, per tree, what its rows choose among what they see [n, n] bool."""
    given = asked.float().view(ROWS, -1, dim)
    queries, keys = given[:, :-1], given[:, -1]
    scale, found = dim**-0.5, []
    for tree in TREES:
        span, seen = slice(tree.row, tree.row + tree.rows), visible(tree.trunk, tree.branches)
        scores = indexer.score(queries[span], keys[span], weights[span].float() * scale * weights.shape[1] ** -0.5)
        found.append(choose(scores, seen, most))
    return found


VARIANTS = {
    "all": AttentionVariant(),
    "window": AttentionVariant(7),
    "itself": AttentionVariant(1),
    "sinks": AttentionVariant(window=40, sinks=torch.tensor([0.5, -1.0, 3.0, 0.0, 1.0, 2.0, -2.0, 0.1, 0.2])),
    "cap": AttentionVariant(cap=1.5),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sizes", [(6, 2, 32, 0.2), (4, 4, 16, 1.0), (9, 3, 64, 0.125)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_over_trees(dtype: torch.dtype, sizes: tuple[int, int, int, float], variant: str) -> None:
    kernels, trees, how = kernels_of(dtype), lay_trees(TREES), VARIANTS[variant]
    sinks = how.sinks[: sizes[0]] if how.sinks is not None else None
    heads = Heads(*sizes, dataclasses.replace(how, sinks=sinks))
    qkv = normal(ROWS, heads.width, seed=1, dtype=dtype)
    dout = normal(ROWS, heads.queries * heads.dim, seed=2, dtype=dtype)
    given = qkv.float().requires_grad_()
    expected = attend_plainly(given, heads)
    (back,) = torch.autograd.grad(expected, given, dout.float())
    out, sums = kernels.attend(qkv, trees, heads)
    near(out, expected, dtype)
    near(kernels.attend_back(qkv, out, sums, dout, trees, heads), back, dtype)
    assert not out[252:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tree_depends_on_nothing_outside(dtype: torch.dtype) -> None:
    """A tree is bit-identical alone and beside others, one of them full of NaN."""
    kernels, heads = kernels_of(dtype), Heads(6, 2, 32, 0.2)
    qkv = normal(ROWS, heads.width, seed=1, dtype=dtype)
    dout = normal(ROWS, heads.queries * heads.dim, seed=2, dtype=dtype)
    qkv[15:16] = qkv[16:160] = dout[16:160] = torch.nan
    together = kernels.attend(qkv, lay_trees(TREES), heads)
    back = kernels.attend_back(qkv, *together, dout, lay_trees(TREES), heads)
    for tree in (TREES[0], TREES[3]):
        span = slice(tree.row, tree.row + tree.rows)
        alone = lay_trees([Tree(0, tree.trunk, tree.branches)])
        out, sums = kernels.attend(qkv[span], alone, heads)
        assert torch.equal(out, together[0][span])
        assert torch.equal(kernels.attend_back(qkv[span], out, sums, dout[span], alone, heads), back[span])
        assert out.isfinite().all()
        assert back[span].isfinite().all()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_back(dtype: torch.dtype, exact: bool) -> None:
    x, dy, dx = (normal(20, 80, seed=seed, dtype=dtype) for seed in (1, 2, 3))
    weight = normal(80, seed=4, dtype=dtype)
    given = x.float().requires_grad_()
    (back,) = torch.autograd.grad(functional.rms_norm(given, (80,), weight.float(), 1e-5), given, dy.float())
    expected = dx.float() + back
    kernels_of(dtype).norm_back(dx, dy, x, Norm(exact=weight.float()) if exact else Norm(weight), 1e-5)
    near(dx, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by", [SILU, Activation("gelu_pytorch_tanh"), Activation("clamped", 1.702, 7.0)])
def test_gate_mul_back(dtype: torch.dtype, by: Activation) -> None:
    gate_up, dy = normal(20, 160, seed=1, dtype=dtype) * 5, normal(20, 80, seed=2, dtype=dtype)
    gate_up[0, :4] = torch.tensor([200.0, -200.0, 0.0, -88.0])
    given = gate_up.float().requires_grad_()
    expected = gated_plainly(given, by)
    (back,) = torch.autograd.grad(expected, given, dy.float())
    found, again = kernels_of(dtype).gate_mul_back(gate_up, dy, by)
    near(found, back, dtype)
    there = find_kernels(dtype, torch.device("cpu"))
    assert there is not None
    assert torch.equal(again, there.gate_mul(gate_up, by))
    near(again, expected, dtype)


def gated_plainly(gate_up: torch.Tensor, by: Activation) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    if by.kind == "clamped":
        gate, up = gate.clamp(max=by.limit), up.clamp(-by.limit, by.limit)
        return (up + 1) * gate * torch.sigmoid(by.alpha * gate)
    return (functional.silu(gate) if by == SILU else functional.gelu(gate, approximate="tanh")) * up


@pytest.mark.parametrize("dtype", DTYPES)
def test_turning_heads_and_back(dtype: torch.dtype) -> None:
    kernels, heads = kernels_of(dtype), Heads(3, 2, 32, 1.0)
    qkv = normal(20, heads.width, seed=1, dtype=dtype)
    angles = torch.rand(50, 16, generator=torch.Generator().manual_seed(2)) * 6
    positions = torch.arange(20) * 2
    turned = qkv.clone()
    kernels.rotate(turned, heads, positions, Angles(angles.cos(), angles.sin()))
    first, second = qkv.float().view(20, 7, 2, 16)[:, :5].unbind(2)
    cos, sin = (each[positions][:, None] for each in (angles.cos(), angles.sin()))
    expected = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=2)
    near(turned.view(20, 7, 32)[:, :5], expected, dtype)
    assert torch.equal(turned.view(20, 7, 32)[:, 5:], qkv.view(20, 7, 32)[:, 5:])
    kernels.rotate(turned, heads, positions, Angles(angles.cos(), angles.sin()), back=True)
    near(turned, qkv, dtype)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_head_norms_and_back(dtype: torch.dtype, joint: bool) -> None:
    """Norms over each head, or jointly over all query heads and over all key heads of a row."""
    kernels, heads = kernels_of(dtype), Heads(4, 2, 32, 1.0)
    raw, dy = (normal(20, heads.width, seed=seed, dtype=dtype) for seed in (1, 2))
    sizes = (4 * 32, 2 * 32) if joint else (32, 32)
    query, key = (normal(size, seed=seed, dtype=dtype) for size, seed in zip(sizes, (3, 4), strict=True))
    given = raw.float().requires_grad_()
    q, k, v = given.tensor_split((4 * 32, 6 * 32), dim=1)
    normed = [
        functional.rms_norm(each.view(20, -1, size), (size,), weight.float(), 1e-6).view(20, -1)
        for each, weight, size in ((q, query, sizes[0]), (k, key, sizes[1]))
    ]
    expected = torch.cat([*normed, v], dim=1)
    (back,) = torch.autograd.grad(expected, given, dy.float())
    found, norms = (
        raw.clone(),
        HeadNorms(Norm(query), Norm(exact=key.float()), 1e-6, Joint(*sizes) if joint else None),
    )
    kernels.head_norm(found, heads, norms)
    near(found, expected, dtype)
    kernels.head_norm_back(dy, raw, heads, norms)
    near(dy, back, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_back(dtype: torch.dtype) -> None:
    """Covers rows that predict several tokens, one of them twice, and rows that predict none."""
    kernels, logits = kernels_of(dtype), normal(5, 500, seed=1, dtype=dtype) * 8
    rows, targets = torch.tensor([0, 0, 0, 2, 4]), torch.tensor([7, 499, 7, 0, 3])
    slopes, given = torch.tensor([0.5, -1.0, 2.0, 0.3, -0.1]), logits.float().requires_grad_()
    logprobs = given.log_softmax(-1)[rows, targets]
    (expected,) = torch.autograd.grad(logprobs, given, slopes)
    sums = kernels.log_sums(logits)
    torch.testing.assert_close(sums, given.detach().logsumexp(-1))
    starts = torch.searchsorted(rows, torch.arange(6))
    kernels.logits_back(logits, sums, starts, targets, logits[rows, targets].float(), slopes)
    near(logits, expected, dtype)
    assert not logits[[1, 3]].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_back_of_some_columns(dtype: torch.dtype) -> None:
    """The vocabulary is sharded over ranks; the sums and slopes include the other ranks' columns."""
    kernels, logits = kernels_of(dtype), normal(3, 500, seed=1, dtype=dtype) * 8
    rows, targets = torch.tensor([0, 0, 1, 2]), torch.tensor([7, 499, 200, 201])
    slopes, given = torch.tensor([0.5, -1.0, 2.0, 0.3]), logits.float().requires_grad_()
    (expected,) = torch.autograd.grad(given.log_softmax(-1)[rows, targets], given, slopes)
    starts, told, sums = torch.searchsorted(rows, torch.arange(4)), logits[rows, targets].float(), given.logsumexp(-1)
    for columns in (slice(0, 201), slice(201, 500)):
        own = logits[:, columns].contiguous()
        kernels.logits_back(own, sums.detach(), starts, targets - columns.start, told, slopes)
        near(own, expected[:, columns], dtype)


def test_inputs_that_are_not_contiguous_are_refused() -> None:
    """Kernels read contiguous numbers; only the rows of a weight may be strided."""
    kernels, wide = kernels_of(torch.float32), normal(4, 12, seed=1, dtype=torch.float32)
    with pytest.raises(Internal, match=r"\(4, 4\) that lie \(12, 1\) apart"):
        kernels.log_sums(wide[:, :4])
    bounds, nothing = torch.tensor([0, 4]), np.zeros(0, dtype=ADAPTER_RUN)
    x, weight = normal(4, 6, seed=2, dtype=torch.float32), wide[:, :6]
    found, _ = kernels.multiply_grouped(x, weight[None], None, bounds, nothing)
    near(found, x @ weight.T, torch.float32)
    with pytest.raises(Internal, match="side by side"):
        kernels.multiply_grouped(x, normal(6, 4, seed=3, dtype=torch.float32).T[None], None, bounds, nothing)
