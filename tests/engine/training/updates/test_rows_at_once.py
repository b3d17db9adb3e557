"""While no tenant is served, many pieces are computed at once, even several of one policy, in their own order."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from mint_contracts.training import Optimizer
from mint_engine.policies.updates.updates import Job, Updates
from mint_engine.training import lean_pass
from mint_engine.training import work as works
from mint_engine.training.batch import ROW_MULTIPLE, Batch
from mint_engine.training.example import PolicyBatch
from mint_engine.training.pieces import PIECE_ROWS, plan_pieces
from mint_engine.training.trainer import Trainer
from mint_engine.training.work import LossOutcome
from tests.engine.training.lean_configs import ROUTED, TAKEN
from tests.engine.training.scene import DAPO, groups, policies, trainer_of

SHORT = 48  # rows of a piece
FAMILIES = TAKEN | ROUTED
BATCHES = [PolicyBatch(f"p/{number}", groups(number, prompts=4 + number), DAPO) for number in range(3)]


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "PIECE_ROWS", SHORT)
    monkeypatch.setattr(works, "plan_pieces", partial(plan_pieces, most=SHORT))


def watched(trainer: Trainer) -> list[Batch]:
    """Record the microbatches that a trainer computes from now on."""
    found, run = list[Batch](), trainer._ranks.run

    def noted(batch: Batch, *told: Any, **named: Any) -> Iterator[None]:
        found.append(batch)
        return run(batch, *told, **named)

    trainer._ranks.run = noted  # type: ignore[method-assign]
    return found


def learnt(trainer: Trainer, *, alone: bool) -> dict[str, LossOutcome]:
    policies(trainer, len(BATCHES))
    work = trainer.begin(BATCHES)
    while work.advance(alone=alone):
        pass
    return work.results()


def several_of_one(batches: list[Batch]) -> bool:
    owners = [[segment.policy for segment in batch.segments] for batch in batches]
    return any(len(set(each)) < len(each) for each in owners)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_are_those_of_a_piece_at_a_time_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    one, other = (trainer_of(FAMILIES[family], dtype) for _ in range(2))
    at_once, apart = watched(one), watched(other)
    found, expected = learnt(one, alone=True), learnt(other, alone=False)
    assert several_of_one(at_once)
    assert not several_of_one(apart)
    for batch in BATCHES:
        ours, theirs = one.policy(batch.policy), other.policy(batch.policy)
        assert ours.gradient is not None
        assert theirs.gradient is not None
        assert torch.equal(ours.gradient, theirs.gradient)
        assert found[batch.policy].metrics == expected[batch.policy].metrics
        assert all(map(lambda a, b: (a == b).all(), found[batch.policy].logprobs, expected[batch.policy].logprobs))


def test_no_more_at_once_than_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per row a layer keeps 2 x 64 hidden, 256 of queries, keys and values, 128 attended, 2 x 96 of the MLP."""
    kept = 2 * 4 * (2 * 64 + 256 + 128 + 2 * 96)
    monkeypatch.setattr(lean_pass, "KEPT_BYTES", 100 * kept)
    trainer = trainer_of()
    batches = watched(trainer)
    learnt(trainer, alone=True)
    rows = [sum(segment.stop - segment.start for segment in batch.segments) for batch in batches]
    assert SHORT < max(rows) <= 100
    assert max(rows) > 100 - SHORT


def test_a_wide_base_computes_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_pass, "KEPT_BYTES", 1)
    trainer = trainer_of()
    batches = watched(trainer)
    learnt(trainer, alone=True)
    assert max(batch.rows for batch in batches) <= SHORT + ROW_MULTIPLE


def test_autograd_which_has_an_order_of_its_own_computes_one_piece_of_a_policy_at_a_time() -> None:
    trainer = trainer_of(lean=False)
    assert trainer._ranks.most_rows == PIECE_ROWS


@pytest.mark.parametrize("tenants", [0, 1])
def test_updates_compute_many_at_once_only_while_no_tenant_is_served(tenants: int) -> None:
    trainer = trainer_of()
    policies(trainer, len(BATCHES))
    batches, updates = watched(trainer), Updates(trainer)
    for batch in BATCHES:
        updates.put(Job(batch, Optimizer(), lambda _: None, lambda _: None))
    while updates.busy:
        updates.advance(tenants, 1.0)
    assert several_of_one(batches) is not bool(tenants)
