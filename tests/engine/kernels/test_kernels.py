"""Each compiled kernel against its formula in plain torch, in both dtypes."""

import math
import platform
import random
import shutil
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.layer_groups import PAGE_TOKENS, first_seen, pages_for
from mint_engine.adapters.adapter import Module
from mint_engine.kernels.attention_structs import AttentionVariant, HeadNorms, Heads, Joint
from mint_engine.kernels.compile import VARIANTS, digest, is_current, knows, library_path
from mint_engine.kernels.constants import ITEM_ROWS
from mint_engine.kernels.library import Kernels, find_kernels
from mint_engine.kernels.linear_structs import Angles
from mint_engine.kernels.row_structs import Activation, Norm
from mint_engine.model.head_layers import CHUNK_TOKENS
from mint_engine.requests.parameters import Sampling
from mint_engine.requests.sampling import draw_plainly
from mint_engine.residency.large_pages import LargePages
from mint_engine.residency.slots import ABSENT, Slots

CPU = torch.device("cpu")
NO_TARGETS = torch.empty(0, 4, dtype=torch.int64)
DTYPES = [torch.float32, torch.bfloat16]
CLOSE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


def kernels(dtype: torch.dtype) -> Kernels:
    found = find_kernels(dtype, CPU)
    assert found is not None, "the kernels are not compiled; run make kernels"
    return found


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("wide", "high"), [(2, 1), (64, 48), (80, 49), (130, 200), (544, 96), (64, 4000)])
def test_a_product_gives_each_row_alone_what_it_gives_it_among_others(
    dtype: torch.dtype, biased: bool, wide: int, high: int
) -> None:
    """Equal to plain torch within rounding, and bit for bit the same for any number of rows, cached or not."""
    weight, x = draw(high, wide, dtype=dtype), draw(150, wide, dtype=dtype, seed=1)
    bias = draw(high, dtype=dtype, seed=2) if biased else None
    linear = kernels(dtype).pack(weight, bias, NO_TARGETS, LargePages())
    found = kernels(dtype).multiply(x, linear)
    expected = torch.nn.functional.linear(x.float(), weight.float(), bias.float() if bias is not None else None)
    torch.testing.assert_close(found.float(), expected, rtol=CLOSE[dtype]["rtol"], atol=5 * CLOSE[dtype]["atol"])
    for count in (1, 2, 7, 8, 9, 16, 17, 32, 33, 127, 128):
        assert torch.equal(kernels(dtype).multiply(x[:count], linear), found[:count])


def test_a_weight_is_packed_however_it_lies_in_memory() -> None:
    weight, x = draw(1024, 1040, dtype=torch.float32).t(), draw(2, 1024, dtype=torch.float32, seed=1)
    linear = kernels(torch.float32).pack(weight, None, NO_TARGETS, LargePages())
    torch.testing.assert_close(kernels(torch.float32).multiply(x, linear), x @ weight.t(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 40, 576])
def test_add_norm(dtype: torch.dtype, size: int) -> None:
    """Rounded before the weight is applied, after it, or not normed at all."""
    hidden, delta, weight = (draw(5, size, dtype=dtype), draw(5, size, dtype=dtype, seed=1), draw(size, dtype=dtype))
    summed = hidden + delta
    scale = torch.rsqrt(summed.float().pow(2).mean(-1, keepdim=True) + 1e-5)
    expected = weight * (summed.float() * scale).to(dtype)
    found = kernels(dtype).add_norm(hidden, delta, Norm(weight), 1e-5)
    assert torch.equal(hidden, summed)
    torch.testing.assert_close(found, expected, **CLOSE[dtype])
    after = (weight.float() * (summed.float() * scale)).to(dtype)
    exact = Norm(exact=weight.float())
    torch.testing.assert_close(kernels(dtype).add_norm(hidden, None, exact, 1e-5), after, **CLOSE[dtype])
    assert torch.equal(kernels(dtype).add_norm(hidden, None, Norm(), 1e-5), summed)


def gpt_oss(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """As in `GptOssExperts`."""
    gate, up = gate.clamp(max=7.0), up.clamp(min=-7.0, max=7.0)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [8, 90, 96, 1536])
@pytest.mark.parametrize("kind", ["silu", "gelu_pytorch_tanh", "clamped"])
def test_gate_mul(dtype: torch.dtype, size: int, kind: Literal["silu", "gelu_pytorch_tanh", "clamped"]) -> None:
    gate_up = draw(7, 2 * size, dtype=dtype) * 6
    gate, up = gate_up[:, :size].float(), gate_up[:, size:].float()
    expected = {
        "silu": lambda: torch.nn.functional.silu(gate).to(dtype) * up,
        "gelu_pytorch_tanh": lambda: torch.nn.functional.gelu(gate, approximate="tanh").to(dtype) * up,
        "clamped": lambda: gpt_oss(gate, up),
    }[kind]()
    found = kernels(dtype).gate_mul(gate_up, Activation(kind, 1.702, 7.0))
    torch.testing.assert_close(found, expected.to(dtype), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul_keeps_what_is_not_finite(dtype: torch.dtype) -> None:
    gate_up = torch.ones(1, 32, dtype=dtype)
    gate_up[0, 0], gate_up[0, 1] = torch.nan, torch.inf
    found = kernels(dtype).gate_mul(gate_up)[0]
    assert found[0].isnan()
    assert not found[1].isfinite()
    assert found[2:].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 700), seed=st.integers(0, 99))
def test_argmax_takes_the_first_of_the_largest(dtype: torch.dtype, size: int, seed: int) -> None:
    logits = draw(3, size, dtype=dtype, seed=seed)
    logits[1] = logits[1, 0]  # all equal
    tokens, peaks = kernels(dtype).argmax(logits)
    assert tokens.tolist() == [int((row == row.max()).nonzero()[0]) for row in logits.float()]
    assert peaks.tolist() == logits.float().amax(-1).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_argmax_tells_of_nan(dtype: torch.dtype) -> None:
    logits = draw(2, 600, dtype=dtype)
    logits[0, 300] = torch.nan
    _, peaks = kernels(dtype).argmax(logits)
    assert math.isnan(peaks[0])
    assert math.isfinite(peaks[1])


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    ranks=st.lists(st.integers(0, 33) | st.sampled_from((64, 128, 512)), min_size=4, max_size=4),
    lengths=st.lists(st.integers(1, ITEM_ROWS), min_size=1, max_size=9),
    seed=st.integers(0, 9),
)
def test_lora(dtype: torch.dtype, shape: tuple[int, int], ranks: list[int], lengths: list[int], seed: int) -> None:
    """Two modules read one x and write side by side into one y; rank 0 leaves a module out."""
    wide, high = shape
    modules = {name: Module(name, wide, high) for name in ("first", "second")}
    slots = Slots(modules, 4, 512, dtype, CPU)
    for slot, rank in enumerate(ranks):
        for module in range(2):
            own = max(0, rank - module)
            if own:
                at = module * rank * (wide + high)
                slots.places[module, slot], slots.ranks[module, slot] = at, own
                slots.scalings[module, slot] = 0.5 + slot
                count = own * (wide + high)
                size = 0.2 * min(1, 33 / own) ** 0.25  # makes the addition equally large for every rank
                slots.memory[slot, at : at + count] = draw(count, dtype=dtype, seed=seed + slot) * size
    items, row, chance = [], 0, random.Random(seed)
    for length in lengths:
        items.append((row, length, chance.randrange(4)))
        row += length
    x, y = draw(row, wide, dtype=dtype, seed=seed), draw(row, 2 * high, dtype=dtype, seed=seed + 1)
    expected = y.float().clone()
    for start, length, slot in items:
        for module in range(2):
            part = slots.part(module, slot) if slots.places[module, slot] != ABSENT else None
            if part is not None:
                middle = (x[start : start + length].float() @ part[0].float().t()) * slots.scalings[module, slot]
                expected[start : start + length, module * high : (module + 1) * high] += (
                    middle.to(dtype).float() @ part[1].float()
                )
    parts = torch.tensor([(module, module * high, wide, high) for module in range(2)])
    kernels(dtype).lora(y, x, torch.tensor(items, dtype=torch.int32), slots, parts)
    torch.testing.assert_close(y.float(), expected, rtol=CLOSE[dtype]["rtol"], atol=5 * CLOSE[dtype]["atol"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim"), [((6, 2), 64), ((4, 4), 16), ((9, 3), 32), ((8, 1), 48), ((5, 1), 16)])
@pytest.mark.parametrize(
    "lengths",
    [
        [(0, 1)],
        [(0, 40), (17, 1), (16, 16), (95, 1)],
        [(31, 2)] * 3 + [(5, 1)] * 30,
        [(127, 2), (250, 20), (300, 1), (128, 16)],  # more of a past than registers take at once
    ],
)
@pytest.mark.parametrize("style", ["plain", "window", "one token", "page", "exact", "joint"])
def test_rope_and_attention(
    dtype: torch.dtype, heads: tuple[int, int], dim: int, lengths: list[tuple[int, int]], style: str
) -> None:
    """Sequences with a past of (position) tokens get (count) more: plain attention over all of them or the latest.

    Pages before a window hold NaN: none of it may be read.
    """
    query, key = heads
    width, run = (query + 2 * key) * dim, kernels(dtype)
    half = dim // 2
    theta = torch.outer(torch.arange(320.0), 100 ** (-torch.arange(half) / half))
    shape = Heads(query, key, dim, Angles(theta.cos(), theta.sin()), *styled(style, heads, dim, dtype))
    pool = torch.zeros(1 + sum(pages_for(at + count) for at, count in lengths), 2, key, PAGE_TOKENS, dim, dtype=dtype)
    free = list(range(1, pool.shape[0]))
    random.Random(0).shuffle(free)
    tables = [[free.pop() for _ in range(pages_for(at + count))] for at, count in lengths]
    whole = [draw(at + count, width, dtype=dtype, seed=n) for n, (at, count) in enumerate(lengths)]

    def compute(rows: list[tuple[int, int, int]]) -> torch.Tensor:
        """Compute the tokens of each (sequence, first, count) in one batch."""
        qkv = torch.cat([whole[n][first : first + count] for n, first, count in rows])
        positions = torch.tensor([at for _, first, count in rows for at in range(first, first + count)])
        places = torch.tensor(
            [
                tables[n][at // PAGE_TOKENS] * PAGE_TOKENS + at % PAGE_TOKENS
                for n, first, count in rows
                for at in range(first, first + count)
            ]
        )
        items: list[tuple[int, int, int, int]] = []
        flat: list[int] = []
        row = 0
        for n, first, count in rows:
            some = range(0, count, CHUNK_TOKENS)
            items += [(row + at, min(CHUNK_TOKENS, count - at), first + at, len(flat)) for at in some]
            flat += tables[n]
            row += count
        run.rope(qkv, shape, positions, places, pool)
        return run.attend(qkv, shape, torch.tensor(items), torch.tensor(flat, dtype=torch.int32), pool, dim**-0.5)

    past = [(n, 0, at) for n, (at, _) in enumerate(lengths) if at]
    if past:
        compute(past)
    for table, (at, _) in zip(tables, lengths, strict=True):
        if shape.variant.window:
            pool[table[: first_seen(at, shape.variant.window)]] = torch.nan
    found = compute([(n, at, count) for n, (at, count) in enumerate(lengths)])
    expected = torch.cat([plain(whole[n], shape)[at : at + count] for n, (at, count) in enumerate(lengths)])
    torch.testing.assert_close(found.float(), expected, rtol=CLOSE[dtype]["rtol"], atol=3 * CLOSE[dtype]["atol"])


def styled(style: str, heads: tuple[int, int], dim: int, dtype: torch.dtype) -> tuple[HeadNorms, AttentionVariant]:
    """The norms and variant of some family's heads."""
    sinks, (query, key) = draw(heads[0], dtype=torch.float32, seed=8), heads
    variant = {
        "window": AttentionVariant(37, sinks, 2.0),
        "one token": AttentionVariant(1, sinks),
        "page": AttentionVariant(PAGE_TOKENS),
        "exact": AttentionVariant(sinks=sinks),
        "joint": AttentionVariant(cap=5.0),
    }.get(style, AttentionVariant())
    if style == "joint":
        queries, keys = Norm(draw(query * dim, dtype=dtype)), Norm(draw(key * dim, dtype=dtype))
        return HeadNorms(queries, keys, 1e-6, Joint(query * dim, key * dim)), variant
    if style == "exact":
        return HeadNorms(
            Norm(exact=draw(dim, dtype=torch.float32)), Norm(exact=draw(dim, dtype=torch.float32, seed=2)), 1e-6
        ), variant
    return HeadNorms(Norm(draw(dim, dtype=dtype)), Norm(draw(dim, dtype=dtype)), 1e-6), variant


def plain(qkv: torch.Tensor, of: Heads) -> torch.Tensor:
    """One complete sequence in float32: norm, rotate, attend. [T, (Q + 2 K) D] -> [T, Q D]"""
    query, key, dim, norms = of.queries, of.keys, of.size, of.norms
    count, dtype = qkv.shape[0], qkv.dtype
    rows = qkv.float().view(count, -1, dim)
    q, k, v = rows[:, :query], rows[:, query : query + key], rows[:, query + key :]
    q, k = (turn(each, norm, of, dtype) for each, norm in ((q, norms.query), (k, norms.key)))
    k, v = (each.repeat_interleave(query // key, dim=1).transpose(0, 1) for each in (k, v))
    scores = (q.transpose(0, 1) @ k.transpose(1, 2)) * dim**-0.5
    if of.variant.cap:
        scores = of.variant.cap * torch.tanh(scores / of.variant.cap)
    at = torch.arange(count)
    hidden = at[None] > at[:, None]
    if of.variant.window:
        hidden |= at[None] <= at[:, None] - of.variant.window
    scores.masked_fill_(hidden, -torch.inf)
    if of.variant.sinks is not None:
        scores = torch.cat([scores, of.variant.sinks.float()[:, None, None].expand(-1, count, 1)], dim=-1)
    attended: torch.Tensor = (scores.softmax(-1)[..., :count] @ v).transpose(0, 1).reshape(count, query * dim)
    return attended


def turn(x: torch.Tensor, norm: Norm, of: Heads, dtype: torch.dtype) -> torch.Tensor:
    """Norm and rotate heads x [T, N, D], rounding where the kernels do."""
    weight = norm.exact if norm.exact is not None else norm.weight
    if weight is not None:
        whole = x.flatten(1) if of.norms.joint else x
        normed = whole * torch.rsqrt(whole.pow(2).mean(-1, keepdim=True) + of.norms.epsilon)
        if norm.exact is None:
            normed = normed.to(dtype).float()
        x = (weight.float() * normed).to(dtype).view(x.shape)
    one, two = x.float().chunk(2, dim=-1)
    cos, sin = of.angles.cos[: x.shape[0], None], of.angles.sin[: x.shape[0], None]
    return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1).to(dtype).float()


def test_heads_without_norms_are_left_as_they_are() -> None:
    qkv = draw(1, 3 * 16, dtype=torch.float32)
    before, pool = qkv.clone(), torch.zeros(2, 2, 1, PAGE_TOKENS, 16)
    angles = Angles(torch.ones(1, 8), torch.zeros(1, 8))
    zero = torch.zeros(1, dtype=torch.int64)
    kernels(torch.float32).rope(qkv, Heads(1, 1, 16, angles), zero, zero + PAGE_TOKENS, pool)
    assert torch.equal(qkv, before)
    assert pool[0].abs().sum() == 0
    assert pool[1, 1, 0].flatten()[::2][:16].tolist() == before[0, 32:].tolist(), "values: token 0 of each pair"


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=150)
@given(
    size=st.integers(1, 900),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 7, 50, 2000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    number=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 99),
)
def test_draw(
    dtype: torch.dtype,
    size: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    number: float,
    seed: int,
) -> None:
    """The token that plain torch draws, or one that rounding could make it: at a border of the running sum."""
    logits = draw(1, size, dtype=dtype, seed=seed) * 3
    sampling = Sampling(1, seed=0, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    columns = (
        torch.tensor([temperature]),
        torch.tensor([top_k]),
        torch.tensor([top_p]),
        torch.tensor([min_p]),
        torch.tensor([number], dtype=torch.float64),
    )
    [found] = kernels(dtype).draw(logits, *columns).tolist()
    near = {
        draw_plainly(
            logits, [msgspec.structs.replace(sampling, top_p=top_p + shift)], [min(max(at, 0.0), 1 - 2**-53)]
        )[0]
        for shift in ((0.0, -1e-6, 1e-6) if top_p < 1 else (0.0,))
        for at in (number, number - 1e-5, number + 1e-5)
    }
    assert found in near


def test_draw_never_takes_what_weighs_nothing() -> None:
    logits = torch.full((1, 600), -torch.inf)
    logits[0, 3], logits[0, 599] = 1.0, 1.0
    for number, token in ((0.0, 3), (0.49, 3), (0.51, 599), (1 - 2**-53, 599)):
        columns = (torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.ones(1), torch.zeros(1))
        found = kernels(torch.float32).draw(logits, *columns, torch.tensor([number], dtype=torch.float64))
        assert found.tolist() == [token]


def test_a_compiler_that_does_not_know_an_instruction_set_is_not_asked_to_make_its_library() -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    assert compiler is not None
    variants = VARIANTS[platform.machine()]
    assert knows(compiler, variants[kernels(torch.float32).variant])
    assert not knows(compiler, ("-mof-another-century",))


def test_a_library_of_other_sources_is_not_used(tmp_path: Path) -> None:
    """Its functions may take other arguments, which would crash the process."""
    made = library_path(kernels(torch.float32).variant)
    assert is_current(made)
    other = tmp_path / made.name
    other.write_bytes(made.read_bytes().replace(digest().encode(), b"0" * 64))
    assert not is_current(other)
    assert not is_current(tmp_path / "missing.so")
