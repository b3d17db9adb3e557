"""A policy's new weights reach every rank, even if one of them cannot take them at once."""

from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from mint_contracts.errors import MintError, SourceUnavailable
from mint_engine.parallel.rank import Rank
from mint_engine.policies.courses.handoff import hand_off
from mint_engine.policies.updates.updates import Job, Learnt, Updates
from tests.engine.parallel.learning import NAMES, Learning, engine
from tests.engine.parallel.playing import TURNS, draw_adapter, play
from tests.engine.running import save_base
from tests.engine.training.at_once import finish_all
from tests.engine.training.scene import OPTIMIZER


def updated(each: Learning) -> torch.Tensor:
    """The answers from a policy's slot after it has taken a step and handed it on."""
    each.create()
    updates, told = Updates(each.trainer), list[Learnt | MintError]()

    def finish(_: object) -> None:
        hand_off(each.slots, 0, each.trainer.policy(NAMES[0]), "p@1.1")

    updates.put(Job(each.batches([0])[0], OPTIMIZER, finish, told.append))
    with capture_logs():
        finish_all(updates)
    assert isinstance(told[0], Learnt)
    assert each.trainer.policy(NAMES[0]).step == 1
    return play(each.generation._forward, TURNS)


def test_a_hand_off_that_another_rank_refuses_once_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The retry changes nothing: the step that was taken is the one served."""
    hear, refused = Rank.hear_change, list[str]()

    def refuse_once(rank: Rank) -> str:
        problem = hear(rank)
        if not refused:
            refused.append(problem := "[Errno 12] Cannot allocate memory")
        return problem

    with engine(save_base(tmp_path), 2) as two:
        two.slots.load(1, draw_adapter(two.slots, 4))
        expected = updated(two)
        two.slots.clear(0)
        monkeypatch.setattr(Rank, "hear_change", refuse_once)
        assert torch.equal(updated(two), expected)
        assert refused
        assert not two.lost


def test_weights_that_no_file_can_be_made_for_are_to_be_told_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: str) -> int:
        raise OSError(12, "Cannot allocate memory")

    with engine(save_base(tmp_path), 2) as two:
        packed = draw_adapter(two.slots, 4)
        with monkeypatch.context() as short:
            short.setattr("mint_engine.parallel.ranks.os.memfd_create", full)
            with pytest.raises(SourceUnavailable, match=r"Errno 12.*; retrying"):
                two.slots.load(0, packed)
        two.slots.load(0, packed)
        assert not two.lost
