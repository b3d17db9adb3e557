"""The head's matrix product in a reused buffer equals modules and autograd, and concurrent uses never share it."""

import contextlib
from collections.abc import Generator

import pytest
import torch
from torch import nn

from mint_engine.training.head import differentiated, multiplied

VOCABULARY, HIDDEN, ROWS = 96, 32, 300


def ended(work: Generator[None, None, torch.Tensor]) -> torch.Tensor:
    """Run a pausing computation to its end, check that it pauses, and return its result."""
    found: list[torch.Tensor] = []

    def whole() -> Generator[None, None, None]:
        found.append((yield from work))

    assert sum(1 for _ in whole()) >= 1
    return found[0]


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(requires_grad=False)


@pytest.mark.parametrize("count", [1, 256, ROWS])
def test_both_ways_are_as_by_modules(linear: nn.Linear, count: int) -> None:
    hidden, slopes = torch.randn(count, HIDDEN), torch.randn(count, VOCABULARY)
    given = []
    for project in (multiplied(linear.weight, ROWS), differentiated(linear)):
        with project(hidden) as projection:
            given.append((ended(projection.forward()).clone(), ended(projection.backward(slopes))))
    for ours, theirs in zip(*given, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_place_is_used_again_but_by_nobody_while_it_is_in_use(linear: nn.Linear) -> None:
    project = multiplied(linear.weight, ROWS)
    one, other = torch.randn(ROWS, HIDDEN), torch.randn(7, HIDDEN)
    with project(one) as projection:
        logits = ended(projection.forward())
        place = logits.data_ptr()
        with project(other) as (forth, _):
            assert ended(forth()).data_ptr() != place
        torch.testing.assert_close(logits, linear(one))
    with contextlib.suppress(ZeroDivisionError), project(other) as (forth, _):
        assert ended(forth()).data_ptr() == place
        raise ZeroDivisionError  # an update that fails midway
    with project(one) as (forth, _):
        assert ended(forth()).data_ptr() == place


def test_a_large_vocabulary_is_computed_a_part_at_a_time() -> None:
    """A part has at most about 8,000 columns forward; backward, with 256 rows, at most a third of that."""
    torch.manual_seed(4)
    linear = nn.Linear(HIDDEN, 20_000, bias=False).requires_grad_(requires_grad=False)
    # Integers, whose sums are exact in any order; a sum of 20,000 rounded products differs between machines.
    weight, hidden, slopes = (
        torch.randint(-3, 4, shape).float() for shape in (linear.weight.shape, (ROWS, HIDDEN), (ROWS, 20_000))
    )
    linear.weight.copy_(weight)
    with multiplied(linear.weight, ROWS)(hidden) as (forth, back):
        assert sum(1 for _ in forth()) == 3
        assert torch.equal(ended(forth()), linear(hidden))
        assert sum(1 for _ in back(slopes)) == 6
        assert torch.equal(ended(back(slopes)), slopes @ linear.weight)
