"""The kernels for GPUs, interpreted, against their formulas row by row; and compiled for a GPU that is not here."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.errors import UnsupportedBase
from mint_contracts.layer_groups import PAGE_TOKENS, LayerGroups, pages_for
from mint_engine.adapters.adapter import Module
from mint_engine.gpu import lora
from mint_engine.gpu.attend import SPLIT, TOKENS
from mint_engine.gpu.find import find_gpu_kernels
from mint_engine.gpu.kernels import GpuKernels
from mint_engine.gpu.lora import TILE, GpuRows
from mint_engine.gpu.proof import prove
from mint_engine.model.attention import attend_planned
from mint_engine.model.attention_style import Style
from mint_engine.model.cache import KvCache
from mint_engine.model.paged import plan_attention
from mint_engine.model.span import Span
from mint_engine.residency.slots import NO_SLOT, Slots
from tests.engine.device_double import CUDA, Silent, standing_in
from tests.engine.made import Delta, pack, unpack

PLAIN, WIDE, STACK = Module("plain", 12, 20), Module("wide", 1100, 8), Module("stack", 20, 12, experts=3)
MODULES = {module.path: module for module in (PLAIN, WIDE, STACK)}
COUNT, MAX_RANK = 4, 20
STYLE = Style(0.3, None, None, None)
SMALLEST_SHARED = 99 << 10  # bytes that a program may have on the GPUs with the least of it, since Ampere
COMPILE_S = 300.0  # only failing tests wait this long


def adapter(rank: int, modules: tuple[Module, ...], seed: int) -> Any:
    draw = torch.Generator().manual_seed(seed)
    deltas = {}
    for module in modules:
        shape = (module.experts,) if module.experts else ()
        a = torch.randn(*shape, rank, module.in_features, generator=draw)
        b = torch.randn(*shape, module.out_features, rank, generator=draw)
        deltas[module.path] = Delta(a, b, scaling=0.5 + seed)
    return pack(MODULES, deltas)


def added(x: torch.Tensor, packed: Any, module: Module, expert: int) -> torch.Tensor | float:
    """PEFT's formula, for one row [in]."""
    delta = unpack(packed).get(module.path) if packed is not None else None
    if delta is None:
        return 0.0
    a, b = (each[expert] if module.experts else each for each in (delta.a, delta.b))
    return (b @ (a @ x)) * delta.scaling


@settings(max_examples=25)
@given(
    ranks=st.lists(st.integers(1, MAX_RANK), min_size=COUNT, max_size=COUNT),
    targets=st.lists(st.sets(st.sampled_from([PLAIN, WIDE, STACK])).map(tuple), min_size=COUNT, max_size=COUNT),
    runs=st.dictionaries(st.integers(NO_SLOT, COUNT - 1), st.integers(1, 9), min_size=1),
    tile=st.sampled_from([1, TILE]),
)  # fmt: skip
def test_every_row_adds_its_own_adapter(
    ranks: list[int], targets: list[tuple[Module, ...]], runs: dict[int, int], tile: int
) -> None:
    owners = torch.tensor([slot for slot, length in runs.items() for _ in range(length)])
    tenants = {slot: adapter(ranks[slot], targets[slot], slot) for slot in range(COUNT) if targets[slot]}
    owners[torch.tensor([slot not in tenants for slot in owners.tolist()])] = NO_SLOT
    draw, count = torch.Generator().manual_seed(9), len(owners)
    with standing_in(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora, "FEW", 0 if tile == TILE else count)
        slots = Slots(MODULES, COUNT, MAX_RANK, torch.float32, CUDA)
        for slot, packed in tenants.items():
            slots.load(slot, packed)
        for at, module in enumerate(MODULES.values()):
            experts, own = torch.randint(0, 3, (count,), generator=draw), owners
            if module.experts:
                order = torch.argsort(experts * (COUNT + 1) + owners)
                experts, own = experts[order], owners[order]
            x = torch.randn(count, module.in_features, generator=draw)
            y = torch.randn(count, module.out_features, generator=draw)
            expected = [
                y[row] + added(x[row], tenants.get(slot), module, expert)
                for row, (slot, expert) in enumerate(zip(own.tolist(), experts.tolist(), strict=True))
            ]
            found = y.to(CUDA)
            GpuRows(own.to(CUDA), experts.to(CUDA) if module.experts else None).add(found, x.to(CUDA), slots, at)
            assert torch.allclose(found.cpu(), torch.stack(expected), atol=1e-3, rtol=1e-4)


def naive_attention(query: torch.Tensor, kept: torch.Tensor, position: int, style: Style) -> torch.Tensor:
    """One row [Q, D] over the past [2, K, N, D] that it is the `position`-th token of."""
    group, first = query.shape[0] // kept.shape[1], max(0, position + 1 - (style.window or position + 1))
    keys, values = (each[:, first : position + 1].repeat_interleave(group, 0) for each in kept)
    scores = torch.einsum("qd,qnd->qn", query, keys) * style.scale
    if style.cap is not None:
        scores = torch.tanh(scores / style.cap) * style.cap
    if style.sinks is not None:
        scores = torch.cat((scores, style.sinks[:, None]), dim=1)
    weights = torch.softmax(scores, dim=1)[:, : keys.shape[1]]
    return torch.einsum("qn,qnd->qd", weights, values)


@settings(max_examples=25)
@given(
    heads=st.sampled_from([(1, 1, 8), (4, 4, 16), (6, 2, 24), (5, 1, 12)]),
    spans=st.lists(
        st.tuples(st.sampled_from([0, 1, 15, 16, 100, SPLIT, SPLIT + 30]), st.sampled_from([1, 2, 17, TOKENS + 5])),
        min_size=1, max_size=4,
    ),
    window=st.sampled_from([None, 1, 20, SPLIT + 10]),
    cap=st.sampled_from([None, 3.0]),
    sunk=st.booleans(),
)  # fmt: skip
def test_every_row_attends_to_its_own_past(
    heads: tuple[int, int, int], spans: list[tuple[int, int]], window: int | None, cap: float | None, sunk: bool
) -> None:
    (queries, keys, size), draw = heads, torch.Generator().manual_seed(3)
    pages = [pages_for(position + length) for position, length in spans]
    order = iter((1 + torch.randperm(sum(pages), generator=draw)).tolist())
    tables = [[next(order) for _ in range(many)] for many in pages]
    planned, row = list[Span](), 0
    for (position, length), table in zip(spans, tables, strict=True):
        planned.append(Span(row, length, position, table, NO_SLOT))
        row += length
    pool = torch.randn(1, sum(pages) + 1, 2, keys, PAGE_TOKENS, size, generator=draw)
    query = torch.randn(row, queries, size, generator=draw)
    sinks = torch.randn(queries, generator=draw) if sunk else None
    with standing_in():
        cache = KvCache(LayerGroups(1, (None,), ((0, 0),)), keys, size, sum(pages), torch.float32, CUDA)
        cache.pool.copy_(pool)
        style = Style(0.3, window, cap, None if sinks is None else sinks.to(CUDA))
        plan = plan_attention(planned, cache, CUDA, GpuKernels()).of(0)
        found = attend_planned(query.to(CUDA).transpose(0, 1), 0, plan, style).cpu().transpose(0, 1)
    style = Style(0.3, window, cap, sinks)
    for span in planned:
        kept = pool[0, list(span.pages)].permute(1, 2, 0, 3, 4).reshape(2, keys, -1, size)
        for at in range(span.length):
            expected = naive_attention(query[span.row + at], kept, span.position + at, style)
            assert torch.allclose(found[span.row + at], expected, atol=1e-4, rtol=1e-4)


def test_a_split_past_gives_the_same_whatever_else_is_in_the_batch() -> None:
    draw = torch.Generator().manual_seed(5)
    pages = pages_for(3 * SPLIT)
    with standing_in():
        cache = KvCache(LayerGroups(1, (None,), ((0, 0),)), 1, 16, 2 * pages, torch.float32, CUDA)
        cache.pool.copy_(torch.randn(cache.pool.shape, generator=draw))
        query = torch.randn(2, 2, 16, generator=draw).to(CUDA)
        short = Span(0, 1, SPLIT + 7, range(1, 1 + pages), NO_SLOT)
        long = Span(1, 1, 3 * SPLIT - 1, range(1 + pages, 1 + 2 * pages), NO_SLOT)
        alone, beside = (
            attend_planned(query[:, : len(spans)], 0, plan_attention(spans, cache, CUDA, GpuKernels()).of(0), STYLE)
            for spans in ([short], [short, long])
        )
        assert torch.equal(alone[:, 0].cpu(), beside[:, 0].cpu())


def test_a_long_past_costs_requests_beside_it_nothing() -> None:
    """No memory for splits that they do not have, and no programs."""
    short = [Span(row, 1, 5, [1], NO_SLOT) for row in range(100)]
    _, decodes, decoding, _ = GpuKernels().lists([*short, Span(100, 1, 9 * SPLIT, range(9 * SPLIT), NO_SLOT)])
    assert len(decodes) // 5 == 100 + 10
    assert decoding[-3:] == [100, 100, 10], "its row, its first item, how many it has"


def test_inputs_may_be_columns_of_a_transposed_tensor() -> None:
    with standing_in():
        slots = Slots(MODULES, 1, 4, torch.float32, CUDA)
        slots.load(0, adapter(4, (PLAIN,), 0))
        x, owners = torch.randn(3, PLAIN.in_features).to(CUDA), torch.zeros(3, dtype=torch.int64).to(CUDA)
        found, expected = (torch.zeros(3, PLAIN.out_features).to(CUDA) for _ in range(2))
        GpuRows(owners).add(found, x.t().contiguous().t(), slots, 0)
        GpuRows(owners).add(expected, x, slots, 0)
        assert torch.equal(found.cpu(), expected.cpu())
        assert expected.cpu().any()


def test_kernels_are_used_if_they_compute_what_plain_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    find_gpu_kernels.cache_clear()
    with standing_in():
        assert find_gpu_kernels(torch.float32, CUDA, latents=False) is not None
        assert find_gpu_kernels(torch.float32, torch.device("cpu"), latents=False) is None
        monkeypatch.setattr(lora, "expand", Silent())
        with pytest.raises(UnsupportedBase, match=r"rows with adapters in torch.float32 on cuda:0: differs"):
            prove(GpuKernels(), torch.float32, CUDA, latents=False)
        find_gpu_kernels.cache_clear()
        assert find_gpu_kernels(torch.float32, CUDA, latents=False) is None
    find_gpu_kernels.cache_clear()


def test_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    """And use tensor cores, and no more of a processor's own memory than every GPU since Ampere has."""
    command = [sys.executable, "-m", "tests.engine.gpu_compiled", "90", "bfloat16"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=COMPILE_S)
    compiled = [json.loads(line) for line in ended.stdout.splitlines()]
    assert {each["name"] for each in compiled} == {
        *("shrink", "expand", "attend", "combine", "attend_latents", "score", "multiply", "multiply_back")
    }
    assert all(each["tensor_cores"] for each in compiled if each["name"] != "combine")
    assert max(each["shared"] for each in compiled) <= SMALLEST_SHARED
    anywhere = ([each["key"] for each in compiled if each["first"] == first] for first in (0, 1))
    assert next(anywhere) == next(anywhere), "wherever a step's lists lie: else steps would wait for the compiler"
