"""Ranks release everything of an update wherever it ends: the first rank, and another that gets the same messages."""

import gc
import os
from functools import partial
from itertools import count

import pytest
import torch

from mint_engine.model.base import Base
from mint_engine.model.modules import find_modules
from mint_engine.parallel.messages import Lesson
from mint_engine.parallel.shard import share_of
from mint_engine.parallel.shared import SharedGroup
from mint_engine.parallel.shared_memory import Extent, SharedMemory
from mint_engine.training import work as works
from mint_engine.training.example import PolicyBatch
from mint_engine.training.follower import Follower
from mint_engine.training.pieces import plan_pieces
from mint_engine.training.trainer import Lead, Trainer
from tests.engine.training.frontier_families import base_of, examples_of
from tests.engine.training.scene import DAPO, learn, policies


def alone(base: Base) -> SharedGroup:
    """A group of one: this rank has the whole base."""
    extent = Extent(1, 1, 64, int(base.config.hidden_size), base.vocab_size, base.dtype)
    descriptor = os.memfd_create("mint-test")
    os.ftruncate(descriptor, extent.nbytes)
    return SharedGroup(SharedMemory(descriptor, extent, share_of(base.model, 0, 1)))


class InProcess:
    """Another rank, except that it meets nobody."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    def check_training(self, own: str) -> None:
        assert own == self._follower.compute

    def tell_lesson(self, lesson: Lesson) -> None:
        self._follower.do(lesson)

    def end(self) -> None:
        raise AssertionError


def held_bytes() -> int:
    """The bytes of all tensors that anything in this process refers to."""
    gc.collect()
    found = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in found}.values())


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss"])
def test_an_update_leaves_nothing_behind_wherever_it_ends(family: str) -> None:
    base, other = base_of(family), base_of(family)
    others = InProcess(Follower(other, find_modules(other.model), alone(other)))
    trainer = Trainer(base, find_modules(base.model), max_rank=16, lead=Lead(others, alone(base), 1))
    names = policies(trainer, 2)
    batches = [PolicyBatch(name, examples_of(number), DAPO) for number, name in enumerate(names)]
    learn(trainer, batches)  # everything that is made only once is made now
    for name in names:
        trainer.policy(name).forget_gradient()
    before, most = held_bytes(), 0
    for pieces in (int(1.6**power) for power in count(1)):
        work = trainer.begin(batches)
        if not all(work.advance() for _ in range(pieces)):
            break
        most = max(most, held_bytes())
        work.cancel()
        assert held_bytes() == before, pieces
    assert most > before
    assert pieces > 20
    for name in names:
        trainer.policy(name).forget_gradient()
    assert held_bytes() == before


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_between_turns_other_ranks_hold_only_updates_that_go_on(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One policy ends in its first turn, one fails in its second, and a third goes on as if it were alone."""
    monkeypatch.setattr(works, "PIECE_ROWS", 1)
    monkeypatch.setattr(works, "plan_pieces", partial(plan_pieces, most=1))
    base, other = base_of(family), base_of(family)
    follower = Follower(other, find_modules(other.model), alone(other))
    trainer = Trainer(base, find_modules(base.model), max_rank=16, lead=Lead(InProcess(follower), alone(base), 1))
    names = policies(trainer, 3)
    goes_on, fails, ends = (
        PolicyBatch(name, examples_of(number)[: 1 if number == 2 else 4], DAPO) for number, name in enumerate(names)
    )
    learn(trainer, [goes_on])
    expected = trainer.policy(names[0]).gradient
    trainer.policy(names[0]).forget_gradient()

    first = finished(trainer.begin([goes_on, fails, ends], most=1))
    assert list(first.results()) == [names[2]]
    assert len(follower._held) == 2
    trainer.begin([first.left()[names[1]]]).cancel()
    assert len(follower._held) == 1
    left = first.left()[names[0]]
    while not left.ended:
        finished(trainer.begin([left], most=1))
    assert not follower._held
    found = trainer.policy(names[0]).gradient
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)
    assert trainer.policy(names[1]).gradient is None
    assert not trainer.policy(names[1]).busy


def finished(work: works.Work) -> works.Work:
    while work.advance():
        pass
    return work
