"""Training records that are read in part, as after a rollback, are left alone until their wave says what to write."""

import msgspec
import pytest

from mint_contracts.training import Policies, Policy
from mint_contracts.training_records import Stage, TrainState
from mint_operator.planning.plan import plan
from mint_operator.planning.snapshot import Inputs, TrainKnown
from tests.operator import training_worlds
from tests.operator.training_worlds import engines, named, planned, published, training_wave
from tests.operator.unread_worlds import in_part, lessons, lose_sight
from tests.operator.worlds import KEY, snapshot


def test_records_that_are_read_in_part_are_left_alone_with_their_wave() -> None:
    world = lessons()
    in_part(world)
    before = world.training
    lose_sight(world)
    assert world.step().training == {}
    assert world.training == before


def test_records_that_are_read_in_part_are_written_anew_for_a_wave_that_can_be_read() -> None:
    world = lessons()
    before = world.training
    in_part(world)
    world.step()
    assert world.training.training == before.training
    assert world.leases == {
        name: (where, lease) for where, of in before.trains.items() for name, lease in of.items()
    }, "under the lease that there is"


@pytest.mark.parametrize("leases_alone", [False, True])
def test_records_that_are_read_in_part_stay_until_the_manifest_of_their_wave_is_read(*, leases_alone: bool) -> None:
    """Whenever an operator has just started, it does not know yet what to write for the wave."""
    uri = "s3://b/p.jsonl"
    of = training_wave("w", policies=Policies(manifest=uri))
    inputs = Inputs(manifests={"uid-w": tuple(Policy(name, rank=8) for name in named("w", [0, 1]))})
    world = planned(training_worlds.base(), [of], engines(1), inputs=inputs)
    world.hear(Stage.RUNNING, 3, published=published(3))
    before, placements = world.training, world.placements
    in_part(world)
    if leases_alone:
        world.training = msgspec.structs.replace(world.training, training=before.training)
    world.inputs = Inputs()
    assert world.step().training == {}
    assert world.placements == placements
    world.inputs = inputs
    world.step()
    assert (world.training.training, world.training.trains) == (before.training, before.trains)


def test_records_that_are_read_in_part_are_not_written_where_the_map_has_lost_them() -> None:
    """An engine that trained by them would train with settings that nobody asked for."""
    world = lessons()
    in_part(world)
    lose_sight(world)
    of = snapshot(world.base, world.waves, world.engines, remembered={})
    found = plan(msgspec.structs.replace(of, training={KEY: TrainKnown(TrainState(), world.training)}))
    assert found.training == {}


def test_records_that_the_map_has_lost_are_written_again_as_they_were() -> None:
    world = lessons()
    lose_sight(world)
    of = snapshot(world.base, world.waves, world.engines, remembered={})
    found = plan(msgspec.structs.replace(of, training={KEY: TrainKnown(TrainState(), world.training)}))
    written_again = training_worlds.written(TrainState(), found.training[KEY])
    assert (written_again.training, written_again.trains) == (world.training.training, world.training.trains)


def test_records_that_are_read_in_part_go_with_their_wave() -> None:
    world = lessons()
    in_part(world)
    world.waves = []
    world.step()
    assert (world.leases, world.training.training) == ({}, {})
