"""Experts sharded over ranks: the ranks' outputs and input gradients sum to those of the unsharded layer."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from mint_contracts.cuts import Cut
from mint_engine.kernels.library import find_kernels
from mint_engine.kernels.row_structs import SILU
from mint_engine.training.batch import Batch, Part, Segment
from mint_engine.training.kernels import find_training_kernels
from mint_engine.training.lean_experts import LeanExperts
from mint_engine.training.llama import Experts
from mint_engine.training.products import Product, Target
from tests.engine.families import CPU, MOE, SIZES
from tests.engine.saved_families import BASES

COUNT, HIDDEN, INNER, ROWS, RANK = MOE["num_experts"], SIZES["hidden_size"], SIZES["intermediate_size"], 32, 4
WIDTHS = {"gate": (HIDDEN, INNER), "up": (HIDDEN, INNER), "down": (INNER, HIDDEN)}
CLOSE = 1e-5


@dataclass(frozen=True)
class Found:
    """The forward output, the input gradient, and the policies' parts with the gradients of their A and B."""

    given: torch.Tensor
    back: torch.Tensor
    parts: dict[str, Part]


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul_(shape[-1] ** -0.5)


def experts_of(held: Cut) -> Experts:
    router: Any = MixtralTopKRouter(BASES["mixtral"])  # type: ignore[no-untyped-call]
    router.requires_grad_(False).weight.copy_(normal(COUNT, HIDDEN, seed=1) * 4)
    gate_up, down = (normal(COUNT, *shape, seed=2)[slice(*held)] for shape in ((2 * INNER, HIDDEN), (HIDDEN, INNER)))
    halves = (Target("gate", slice(0, INNER)), Target("up", slice(INNER, 2 * INNER)))
    return Experts(
        0,
        router,
        type(router).__name__,
        int(router.top_k),
        COUNT,
        held,
        (Product(gate_up, None, halves),),
        Product(down, None, (Target("down", slice(0, HIDDEN)),)),
        None,
        None,
    )


def batch_of(held: Cut, routes: torch.Tensor | None) -> Batch:
    """Return a batch with rows of two policies, and rows of none."""
    segments = []
    for number, (start, stop) in enumerate(((0, 11), (11, 30))):
        parts = {}
        for at, (name, (wide, high)) in enumerate(WIDTHS.items()):
            a, b = (normal(COUNT, RANK, size, seed=10 * number + at)[slice(*held)] for size in (wide, high))
            parts[name] = Part(a, b, 2.0, torch.zeros(a.shape), torch.zeros(b.shape))
        segments.append(Segment(start, stop, number, parts))
    tokens = torch.zeros(ROWS, dtype=torch.int64)
    return Batch(tokens, tokens, (), tuple(segments), None if routes is None else routes[:, None])


def result(of: Generator[None, None, Any]) -> Any:
    while True:
        try:
            next(of)
        except StopIteration as end:
            return end.value


@torch.no_grad()
def computed(held: Cut, routes: torch.Tensor | None) -> Found:
    """Run forward and backward over the experts that this rank holds."""
    kernels, training = find_kernels(torch.float32, CPU), find_training_kernels(torch.float32, CPU)
    assert kernels is not None
    assert training is not None
    lean, batch, x = LeanExperts(kernels, training, SILU), batch_of(held, routes), normal(ROWS, HIDDEN, seed=3) * 4
    given, kept = result(lean.forward(experts_of(held), x, batch))
    back = result(lean.backward(kept, x, normal(ROWS, HIDDEN, seed=4), batch))
    parts = {f"{name} {each.policy}": part for each in batch.segments for name, part in each.parts.items()}
    return Found(given, back, parts)


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).norm()) <= CLOSE * float(expected.norm())


@pytest.mark.parametrize("chosen", ["by the router", "replayed", "all of the first rank"])
def test_shares_of_them_add_up_to_all(chosen: str) -> None:
    """The gradients of A and B come from the rank that holds the expert."""
    routes = None
    if chosen != "by the router":
        among = COUNT if chosen == "replayed" else COUNT // 2
        routes = torch.rand(ROWS, among, generator=torch.Generator().manual_seed(5)).argsort(1)[:, :2]
    whole, *shares = (computed(held, routes) for held in (Cut(0, COUNT), Cut(0, COUNT // 2), Cut(COUNT // 2, COUNT)))
    first, second = shares
    near(first.given + second.given, whole.given)
    near(first.back + second.back, whole.back)
    for name, part in whole.parts.items():
        for half in ("a_gradient", "b_gradient"):
            near(torch.cat([getattr(share.parts[name], half) for share in shares]), getattr(part, half))
    if chosen == "all of the first rank":
        nothing = [second.given, second.back, *(part.b_gradient for part in second.parts.values())]
        assert not any(each.any() for each in nothing)
