"""Bases read from disk, compared with each other bit for bit."""

from pathlib import Path

import torch

from mint_engine.model.base import Base, load_base
from mint_engine.model.reference import find_reference, load_part
from mint_engine.parallel.part import Part
from tests.engine.families import CPU

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def weights(base: Base) -> dict[str, torch.Tensor]:
    return dict(base.model.state_dict())


def assert_equal(found: Base, expected: Base) -> None:
    held, meant = weights(found), weights(expected)
    assert held.keys() == meant.keys()
    for name, each in meant.items():
        assert held[name].dtype == each.dtype
        assert torch.equal(held[name], each), name


def assert_read_alike(quantised: Path, plain: Path) -> None:
    """Check that weights and logits are equal: whole, by each rank, and streamed layer by layer by the first."""
    whole, own = (load_base(each, torch.bfloat16, CPU) for each in (plain, quantised))
    assert_equal(own, whole)
    logits = find_reference(whole).logits
    assert torch.equal(find_reference(own).logits, logits)
    for rank in range(2):
        read = load_base(quantised, torch.bfloat16, CPU, Part(rank, 2))
        assert_equal(read, load_base(plain, torch.bfloat16, CPU, Part(rank, 2)))
        streamed, found = load_part(quantised, torch.bfloat16, Part(rank, 2))
        assert_equal(streamed, read)
        assert torch.equal(found.logits, logits)
