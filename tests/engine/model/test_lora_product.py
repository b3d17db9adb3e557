"""The multi-LoRA product and the slots, against the formula written out row by row."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.errors import MintError, RankTooLarge, ShapeMismatch, UnknownTargetModules
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.packed import Packed
from mint_engine.model.lora import LONG_SEGMENT, Segment, sort_rows
from mint_engine.residency.slots import NO_SLOT, Slots
from tests.engine.made import Delta, pack, unpack

CPU = torch.device("cpu")
LEFT, RIGHT = Module("layers.0.left", 12, 20), Module("layers.0.right", 20, 8)
MODULES = {module.path: module for module in (LEFT, RIGHT)}
COUNT, MAX_RANK = 5, 16


def naive(
    y: torch.Tensor, x: torch.Tensor, segments: list[Segment], tenants: dict[int, Packed], path: str
) -> torch.Tensor:
    """PEFT's formula, one row at a time."""
    y = y.clone()
    for segment in segments:
        delta = unpack(tenants[segment.slot]).get(path) if segment.slot in tenants else None
        if delta is not None:
            for row in range(segment.start, segment.start + segment.length):
                y[row] += (delta.b @ (delta.a @ x[row])) * delta.scaling
    return y


def adapter(rank: int, modules: tuple[Module, ...] = (LEFT, RIGHT), seed: int = 0) -> Packed:
    draw = torch.Generator().manual_seed(seed * 31 + rank)
    deltas = {
        module.path: Delta(
            a=torch.randn(rank, module.in_features, generator=draw),
            b=torch.randn(module.out_features, rank, generator=draw),
            scaling=0.5 + seed,
        )
        for module in modules
    }
    return pack(MODULES, deltas)


def make_slots() -> Slots:
    return Slots(MODULES, COUNT, MAX_RANK, torch.float32, CPU)


@settings(max_examples=150, deadline=None)
@given(
    ranks=st.lists(st.integers(1, MAX_RANK), min_size=COUNT, max_size=COUNT),
    loaded=st.lists(st.sampled_from([(), (LEFT,), (RIGHT,), (LEFT, RIGHT)]), min_size=COUNT, max_size=COUNT),
    runs=st.lists(
        st.tuples(st.integers(NO_SLOT, COUNT - 1), st.integers(1, 2 * LONG_SEGMENT)), min_size=1, max_size=8
    ),
)
def test_any_mix_equals_the_formula(
    ranks: list[int], loaded: list[tuple[Module, ...]], runs: list[tuple[int, int]]
) -> None:
    slots, tenants = make_slots(), {}
    for slot, (rank, modules) in enumerate(zip(ranks, loaded, strict=True)):
        if modules:
            tenants[slot] = adapter(rank, modules, seed=slot)
            slots.load(slot, tenants[slot])
    segments, row = [], 0
    for slot, length in runs:
        segments.append(Segment(row, length, slot))
        row += length
    rows = sort_rows(segments, slots)
    for module in (LEFT, RIGHT):
        x, y = torch.randn(row, module.in_features), torch.randn(row, module.out_features)
        expected = naive(y, x, segments, tenants, module.path)
        if rows is not None:
            rows.add(y, x, slots, slots.index[module.path])
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_a_neighbour_with_nan_stays_alone() -> None:
    """One tenant's NaN weights, in short and in long segments, reach no other row."""
    slots, broken = make_slots(), adapter(8)
    broken.run.fill_(torch.nan)
    slots.load(0, broken)
    slots.load(1, adapter(8, seed=1))
    for length in (1, LONG_SEGMENT):
        segments = [Segment(0, length, 0), Segment(length, length, 1), Segment(2 * length, 1, NO_SLOT)]
        rows = sort_rows(segments, slots)
        assert rows is not None
        y = torch.zeros(2 * length + 1, LEFT.out_features)
        rows.add(y, torch.ones(2 * length + 1, LEFT.in_features), slots, slots.index[LEFT.path])
        assert y[:length].isnan().all()
        assert y[length:].isfinite().all()


def test_bare_rows_cost_nothing() -> None:
    slots = make_slots()
    assert sort_rows([Segment(0, 4, NO_SLOT)], slots) is None
    assert sort_rows([Segment(0, 4, 2)], slots) is None, "an empty slot is the bare base"


def test_a_slot_never_shows_its_former_tenant() -> None:
    """After any sequence of loads and clears a slot holds its tenant's values and zeros."""
    slots, draw = make_slots(), random.Random(0)
    tenants: dict[int, Packed] = {}
    for turn in range(60):
        slot = draw.randrange(COUNT)
        if draw.random() < 0.3:
            slots.clear(slot)
            tenants.pop(slot, None)
        else:
            modules = draw.choice(((LEFT,), (RIGHT,), (LEFT, RIGHT)))
            tenants[slot] = adapter(draw.randint(1, MAX_RANK), modules, seed=turn)
            slots.load(slot, tenants[slot])
    for slot in range(COUNT):
        held = 0
        for path, module in slots.index.items():
            delta, part = unpack(tenants[slot]).get(path) if slot in tenants else None, slots.part(module, slot)
            assert (delta is None) == (part is None)
            if delta is not None and part is not None:
                assert torch.equal(part[0], delta.a)
                assert torch.equal(part[1], delta.b.t())
                held += delta.a.numel() + delta.b.numel()
        assert not slots.memory[slot, held:].any()


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        (adapter(MAX_RANK + 1), RankTooLarge),
        (adapter(4, (Module("layers.9.left", 12, 20),)), UnknownTargetModules),
        (adapter(4, (LEFT, Module(RIGHT.path, 20, 9))), ShapeMismatch),
    ],
)
def test_what_does_not_fit_changes_nothing(weights: Packed, error: type[MintError]) -> None:
    slots = make_slots()
    slots.load(3, adapter(4))
    before = [each.clone() for each in (slots.memory, slots.places, slots.ranks, slots.scalings)]
    with pytest.raises(error):
        slots.load(3, weights)
    for was, now in zip(before, (slots.memory, slots.places, slots.ranks, slots.scalings), strict=True):
        assert torch.equal(was, now)


def test_bytes_are_those_of_the_tensors() -> None:
    per_slot = MAX_RANK * (LEFT.in_features + LEFT.out_features + RIGHT.in_features + RIGHT.out_features) * 4
    assert make_slots().bytes == COUNT * per_slot
