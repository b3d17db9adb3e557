"""What the ranks' shares of an adapter add to their partial sums adds up to what the whole adapter adds."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mint_engine.adapters.adapter import Delta, Module
from mint_engine.parallel.shares import Dimensions, cuts_of, share_out
from mint_engine.residency.slots import Slots
from tests.engine.made import pack

BASE = Dimensions(heads=6, kv_heads=3, head_dim=8, inner=80, vocabulary=96)
HIDDEN, ROWS, SLOT = 32, 3, 1
MODULES = {
    path: Module(path, wide, high)
    for path, wide, high in (("l.0.q_proj", HIDDEN, 48), ("l.0.v_proj", HIDDEN, 24), ("l.0.o_proj", 48, HIDDEN),
                             ("l.0.up_proj", HIDDEN, 80), ("l.0.down_proj", 80, HIDDEN))
}  # fmt: skip
ALL = slice(None)


@given(ranks=st.lists(st.integers(0, 6), min_size=5, max_size=5), count=st.sampled_from([1, 2, 3]))
def test_shares_add_up(ranks: list[int], count: int) -> None:
    draw = torch.Generator().manual_seed(sum(ranks) + count)
    deltas = {
        path: Delta(
            torch.randn(rank, module.in_features, generator=draw),
            torch.randn(module.out_features, rank, generator=draw),
            0.5,
        )
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
        x = torch.randn(ROWS, module.in_features, generator=draw)
        found = torch.zeros(ROWS, module.out_features)
        for share, own in zip(shares, slots, strict=True):
            part, cut = own.part(own.index[path], SLOT), cuts_of(MODULES, share)[path]
            assert part is not None
            inputs = slice(*cut.inputs) if cut.inputs else ALL
            outputs = slice(*cut.outputs) if cut.outputs else ALL
            scaling = float(own.scalings[own.index[path], SLOT])
            found[:, outputs] += x[:, inputs] @ part[0].t() * scaling @ part[1]
        torch.testing.assert_close(found, x @ delta.a.t() @ delta.b.t() * delta.scaling, rtol=1e-4, atol=1e-4)
