"""What the ranks' shares of an adapter add to their partial sums equals what the complete adapter adds."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.cuts import Cut
from mint_engine.adapters.adapter import Module
from mint_engine.parallel.shares import Dimensions, ModuleCut, cuts_of, share_out
from mint_engine.residency.slots import Slots
from tests.engine.made import Delta, pack

BASE = Dimensions(heads=6, kv_heads=3, vocabulary=96, experts=5)
HIDDEN, ROWS, SLOT = 32, 3, 1
MODULES = {
    path: Module(path, wide, high, experts)
    for path, wide, high, experts in (
        ("l.0.q_proj", HIDDEN, 48, 0), ("l.0.v_proj", HIDDEN, 24, 0), ("l.0.o_proj", 48, HIDDEN, 0),
        ("l.0.up_proj", HIDDEN, 80, 0), ("l.0.down_proj", 80, HIDDEN, 0), ("l.0.q_a_proj", HIDDEN, 20, 0),
        ("l.0.experts.up_proj", HIDDEN, 12, 5), ("l.1.qkv_proj", HIDDEN, 96, 0), ("l.1.gate_up_proj", HIDDEN, 160, 0),
    )
}  # fmt: skip


def draw_delta(module: Module, rank: int, draw: torch.Generator) -> Delta:
    stacked = (module.experts,) if module.experts else ()
    a = torch.randn(*stacked, rank, module.in_features, generator=draw)
    return Delta(a, torch.randn(*stacked, module.out_features, rank, generator=draw), 0.5)


def held(cut: Cut | None) -> slice:
    return slice(*cut) if cut else slice(None)


@given(
    ranks=st.lists(st.integers(0, 6), min_size=len(MODULES), max_size=len(MODULES)), count=st.sampled_from([1, 2, 3])
)
def test_shares_add_up(ranks: list[int], count: int) -> None:
    draw = torch.Generator().manual_seed(sum(ranks) + count)
    deltas = {
        path: draw_delta(module, rank, draw)
        for (path, module), rank in zip(MODULES.items(), ranks, strict=True)
        if rank
    }
    if not deltas:
        return
    whole, shares = pack(MODULES, deltas), share_out(BASE, count)
    slots = []
    for share in shares:
        own = Slots(MODULES, 2, 8, torch.float32, torch.device("cpu"), cuts_of(MODULES, share))
        own.load(SLOT, whole)
        slots.append(own)
    for path, delta in deltas.items():
        module = MODULES[path]
        x = torch.randn(max(module.experts, 1), ROWS, module.in_features, generator=draw)  # an expert's rows
        expected = x @ delta.a.mT @ delta.b.mT * delta.scaling
        found = torch.zeros_like(expected)
        for share, own in zip(shares, slots, strict=True):
            at, cut = own.index[path], share.of(module)
            part = own.part(at, SLOT)
            assert part is not None
            a, b = (each.view(own.experts[at], -1, each.shape[1]) for each in part)
            added = x[held(cut.experts)][..., held(cut.inputs)] @ a.mT * float(own.scalings[at, SLOT]) @ b
            if cut == ModuleCut():  # held by all ranks, so each adds it to what all have
                torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-4)
                found = added
            else:
                columns = torch.cat([torch.arange(module.out_features)[run] for run in cut.slices[1]])
                found[held(cut.experts)][..., columns] += added
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
