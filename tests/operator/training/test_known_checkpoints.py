"""Leases carry the newest known checkpoint: the policy's next engine learns of it, and no other run does."""

import msgspec
import pytest

from mint_contracts.training_records import Stage, TrainState
from tests.operator.training_worlds import FAILURE, STEPS, World, base, dead, engines, named, planned, training_wave

NAMES = named("w", [0, 1])


def lessons(count: int = 1) -> World:
    """Return a world with a wave whose policies are leased to engines."""
    return planned(base(count, count), [training_wave("w", 2)], engines(count))


def known(world: World) -> set[int]:
    """Return the checkpoint steps in the leases."""
    assert list(world.leases) == NAMES
    return {lease.saved for _, lease in world.leases.values()}


def test_nothing_is_known_of_a_policy_that_has_saved_nothing_whatever_it_has_learnt() -> None:
    world = lessons()
    assert known(world) == {0}
    world.hear(Stage.RUNNING, 3)
    assert known(world) == {0}


def test_another_engine_is_told_of_the_newest_checkpoint() -> None:
    world = lessons(2)
    home = {engine for engine, _ in world.leases.values()}.pop()
    for saved in (4, 5):
        world.hear(Stage.RUNNING, 7, saved=saved)
    world.engines = [dead(view) if view.engine == home else view for view in world.engines]
    world.away_s = {home: 60.0}
    world.step()
    assert home not in {engine for engine, _ in world.leases.values()}
    assert known(world) == {5}


def test_a_lease_remembers_when_engines_and_operator_start_anew() -> None:
    world = lessons()
    world.hear(Stage.RUNNING, 4, saved=3)
    before = world.leases
    for incarnation in (2, 3):
        world.start_anew(incarnation)
        world.step()
        assert known(world) == {3}
    assert all(lease.lease > before[name][1].lease for name, (_, lease) in world.leases.items())


def test_leases_are_written_again_only_as_the_step_doubles() -> None:
    """Each write makes the engine read all its leases, and what matters is that a checkpoint exists at all."""
    world = lessons()
    writes = []
    for step in range(1, 9):
        world.say(Stage.RUNNING, step, saved=step)
        changed = bool(world.step().training)
        writes.append((changed, *known(world)))
    assert writes == [(True, 1), (True, 2), (False, 2), (True, 4), (False, 4), (False, 4), (False, 4), (True, 8)]


@pytest.mark.parametrize("forgets", ["engines", "nobody"])
def test_a_wave_made_anew_under_the_name_knows_of_no_checkpoint(forgets: str) -> None:
    world = lessons()
    world.hear(Stage.RUNNING, 4, saved=4)
    if forgets == "engines":
        world.training = msgspec.structs.replace(world.training, progress={})
    world.waves = [training_wave("w", 2, run="another")]
    for _ in range(2):
        world.step()
        assert {lease.run for _, lease in world.leases.values()} == {"another"}
        assert known(world) == {0}


@pytest.mark.parametrize("stage", [Stage.PAUSED, Stage.COMPLETE, Stage.FAILED])
def test_a_resting_policy_resumes_from_its_checkpoint_after_everything_restarted(stage: Stage) -> None:
    world = lessons()
    step = STEPS if stage is Stage.COMPLETE else 4
    if stage is Stage.PAUSED:
        world.change("w", paused=True)
        world.step()
    world.hear(stage, step, saved=step, failure=FAILURE if stage is Stage.FAILED else None)
    world.start_anew(2)
    world.step()
    assert world.leases == {}
    world.change("w", paused=False, steps=STEPS + 5, retry=1)
    world.step()
    assert known(world) == {step}


def test_a_word_that_does_not_tell_of_checkpoints_takes_nothing_from_what_an_older_one_told() -> None:
    """For example, an engine of an earlier version reports no checkpoints."""
    world = lessons()
    world.hear(Stage.PAUSED, 4, saved=4)
    world.start_anew(2)
    world.step()
    world.say(Stage.LOADING)
    world.training = msgspec.structs.replace(world.training, trains={})
    world.step()
    assert known(world) == {4}


def test_what_the_map_has_lost_is_known_as_far_as_engines_tell_it_again() -> None:
    world = lessons()
    world.hear(Stage.RUNNING, 4, saved=4)
    world.training = TrainState(progress=world.training.progress)
    world.version = None
    world.step()
    assert known(world) == {4}
    world.training = TrainState()
    world.version = None
    world.step()
    assert known(world) == {0}
