"""The experts' products, adapters' and base's, against naive references that compute one pair after another."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.cuts import Cut
from mint_engine.adapters.adapter import Module
from mint_engine.kernels.constants import ITEM_ROWS
from mint_engine.kernels.expert_structs import Stack
from mint_engine.kernels.library import find_kernels
from mint_engine.model.expert_lora import add_expert_lora, plan_experts, sort_pairs
from mint_engine.model.lora import Segment
from mint_engine.parallel.shares import ModuleCut
from mint_engine.residency.slots import NO_SLOT, Slots

CPU = torch.device("cpu")
EXPERTS, WIDE, HIGH, SLOTS = 5, 40, 24, 3
ALL = Cut(0, EXPERTS)
SIZES = st.one_of(st.integers(1, 70), st.sampled_from((32, 64, 96)))  # arbitrary sizes, and sizes that fill registers


def some_slots(dtype: torch.dtype, held: Cut = ALL) -> Slots:
    """Slots of ranks 4, 4 (laid out alike) and 7 for the held experts; a plain module lies before the stacked one."""
    modules = {"q": Module("q", WIDE, HIGH), "experts.up": Module("experts.up", WIDE, HIGH, EXPERTS)}
    cuts = {"q": ModuleCut(), "experts.up": ModuleCut(experts=held)}
    slots, draw = Slots(modules, SLOTS, 8, dtype, CPU, cuts), torch.Generator().manual_seed(0)
    for slot, rank in enumerate((4, 4, 7)):
        plain, stacked = rank * (WIDE + HIGH), held.size * rank * (WIDE + HIGH)
        slots.memory[slot, : plain + stacked] = torch.randn(plain + stacked, generator=draw).to(dtype)
        slots.places[:, slot] = torch.tensor([0, plain])
        slots.ranks[:, slot] = rank
        slots.scalings[:, slot] = 0.5 + slot
        slots.filled[slot] = plain + stacked
    return slots


def naive(
    y: torch.Tensor, x: torch.Tensor, slots: Slots, routes: torch.Tensor, owners: list[int], held: Cut
) -> torch.Tensor:
    """Return y plus the LoRA product; y, x and the result are in the order of routes [T, k], flattened."""
    out = y.float().clone()
    for pair, expert in enumerate(routes.flatten().tolist()):
        slot = owners[pair // routes.shape[1]]
        part = slots.part(1, slot) if slot != NO_SLOT and expert in range(*held) else None
        if part is not None:
            a, b = (each.view(held.size, -1, each.shape[1])[expert - held.start].float() for each in part)
            out[pair] += (a @ x[pair].float()) * float(slots.scalings[1, slot]) @ b
    return out


@pytest.mark.parametrize("compiled", [False, True], ids=["torch", "kernel"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@settings(max_examples=30, deadline=None)
@given(st.lists(
           st.tuples(st.integers(1, 2 * ITEM_ROWS + 1), st.integers(NO_SLOT, SLOTS - 1)), min_size=1, max_size=5),
       st.integers(1, 3), st.integers(0, 1 << 20),
       st.sampled_from([ALL, Cut(0, 2), Cut(2, 5), Cut(3, 4)]))  # fmt: skip
def test_equals_the_naive_product(
    compiled: bool,
    dtype: torch.dtype,
    tolerance: float,
    runs: list[tuple[int, int]],
    each: int,
    seed: int,
    held: Cut,
) -> None:
    """A rank computes the experts that it holds; pairs of other experts are not its own."""
    kernels = find_kernels(dtype, CPU) if compiled else None
    if compiled and kernels is None:
        pytest.skip("no compiled kernels here")
    slots, draw = some_slots(dtype, held), torch.Generator().manual_seed(seed)
    owners = [slot for length, slot in runs for _ in range(length)]
    starts = [sum(length for length, _ in runs[:at]) for at in range(len(runs))]
    segments = [Segment(start, length, slot) for start, (length, slot) in zip(starts, runs, strict=True)]
    routes = torch.stack([torch.randperm(EXPERTS, generator=draw)[:each] for _ in owners])
    x, y = (torch.randn(len(owners) * each, size, generator=draw).to(dtype) for size in (WIDE, 2 * HIGH))
    rows = plan_experts(segments, len(owners), slots, kernels)
    pairs = sort_pairs(routes, rows, held)
    found = y[pairs.order]
    if rows is not None:
        with torch.inference_mode():
            add_expert_lora([(found[:, HIGH:], 1)], x[pairs.order], slots, rows, pairs)
    expected = y.float()
    expected[:, HIGH:] = naive(y[:, HIGH:], x, slots, routes, owners, held)
    expected = expected[pairs.order]
    assert (found.float() - expected).norm() <= tolerance * expected.norm()
    chosen = routes.flatten()[pairs.order]
    assert torch.equal(chosen, pairs.experts + held.start)
    own = [int(((held.start <= routes) & (routes < end)).sum()) for end in range(held.start, held.stop + 1)]
    assert list(pairs.bounds) == own
    assert sorted(pairs.order.tolist()) == [at for at, e in enumerate(routes.flatten()) if int(e) in range(*held)]


def test_experts_stay_differentiable() -> None:
    """Training uses the same modules: when gradients are wanted, the compiled kernel is not used."""
    slots = some_slots(torch.float32)
    rows = plan_experts([Segment(0, 4, 2)], 4, slots, find_kernels(torch.float32, CPU))
    assert rows is not None
    pairs = sort_pairs(torch.tensor([[0], [1], [1], [4]]), rows, ALL)
    x = torch.randn(4, WIDE, requires_grad=True)
    y = torch.zeros(4, HIGH)
    add_expert_lora([(y, 1)], x, slots, rows, pairs)
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    part = slots.part(1, 2)
    assert part is not None
    a, b = (each.view(EXPERTS, -1, each.shape[1]) for each in part)
    expected = torch.stack([b[expert].sum(1) @ a[expert] * slots.scalings[1, 2] for expert in (0, 1, 1, 4)])
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 4 * ITEM_ROWS + 1), min_size=1, max_size=5), SIZES, SIZES, st.integers(0, 1 << 20),
)  # fmt: skip
def test_the_bases_product(
    dtype: torch.dtype, tolerance: float, counts: list[int], wide: int, high: int, seed: int
) -> None:
    """For any sizes and numbers of rows; a row's numbers are bit for bit the same alone and beside others."""
    kernels = find_kernels(dtype, CPU)
    if kernels is None:
        pytest.skip("no compiled kernels here")
    bounds = list(itertools.accumulate(counts, initial=0))
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(counts), high, wide, generator=draw).to(dtype)
    x = torch.randn(bounds[-1], wide, generator=draw).to(dtype)
    by = Stack(weight.shape, weight)
    found = kernels.multiply_experts(x, by, bounds)
    for expert, (start, stop) in enumerate(itertools.pairwise(bounds)):
        for row in range(start, stop):
            expected = weight[expert].float() @ x[row].float()
            torch.testing.assert_close(found[row].float(), expected, rtol=tolerance, atol=tolerance * wide**0.5)
            alone = [0] * (expert + 1) + [1] * (len(counts) - expert)
            assert torch.equal(kernels.multiply_experts(x[row : row + 1], by, alone)[0], found[row])
