"""What a job gives: as many optimizer steps as it has epochs, each over the gradients of the weights by then."""

from mint_contracts.training import Optimizer
from mint_engine.policies.updates import Job, Updates
from mint_engine.training.example import PolicyBatch
from mint_engine.training.pieces import PIECE_ROWS
from mint_engine.training.trainer import Trainer
from tests.engine.training.scene import DAPO, groups, learn, policies, trainer_of

OPTIMIZER = Optimizer(learning_rate=1e-2)


def taken(trainer: Trainer, epochs: int) -> bytes:
    """The policy after one job, whose end finds it whole."""
    ended: list[bytes] = []
    job = Job(PolicyBatch("p/0", groups(1), DAPO), OPTIMIZER, lambda t: ended.append(t.save("p/0")), print, epochs)
    updates = Updates(trainer)
    updates.put(job)
    while updates.busy:
        updates.advance(0, 0.0)
    assert not trainer.policy("p/0").halfway
    return ended[0]


def test_two_epochs_are_two_updates_over_the_same_examples() -> None:
    by_job, by_hand = trainer_of(), trainer_of()
    policies(by_job, 1)
    policies(by_hand, 1)
    for _ in range(2):
        learn(by_hand, [PolicyBatch("p/0", groups(1), DAPO)])
        by_hand.step({"p/0": OPTIMIZER})
    assert taken(by_job, epochs=2) == by_hand.save("p/0")
    assert by_job.policy("p/0").step == 2


def test_what_a_policy_brings_is_planned_only_when_the_work_comes_to_it() -> None:
    trainer = trainer_of()
    policies(trainer, 3)
    many = [example for number in range(40) for example in groups(number)]
    assert sum(len(example.tokens) for example in many) > PIECE_ROWS
    work, planned = trainer.begin([PolicyBatch(f"p/{number}", many, DAPO) for number in range(3)]), []
    while work.advance():
        planned.append(sum(bool(share.pieces) for share in work._shares))
    assert set(planned) >= {1, 2, 3}
