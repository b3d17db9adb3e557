"""What policies have published is held until their wave is deleted, whatever happens to their base."""

import msgspec
import pytest

from mint_contracts.resources import Serve, Tenant, TrainingStore
from mint_contracts.training import Dataset
from mint_contracts.training_records import Stage
from mint_operator.planning.snapshot import ObservedBase
from tests.operator.training_worlds import (
    STEPS,
    TRAINING,
    base,
    condition,
    engines,
    named,
    planned,
    published,
    training,
    training_wave,
)
from tests.operator.unread_worlds import in_part
from tests.operator.worlds import KEY, wave

DATASET = Dataset(uri="pvc://data/train.jsonl")


def mounting(*claims: str, of: ObservedBase) -> ObservedBase:
    adapters = msgspec.structs.replace(of.spec.adapters, volume_claims=["training", *claims])
    return msgspec.structs.replace(of, spec=msgspec.structs.replace(of.spec, adapters=adapters))


GROWN = mounting("data", of=base(2, 2, slots=2))


@pytest.mark.parametrize(
    ("later", "homes"),
    [
        (mounting("data", of=base(1, 1, slots=2)), {"smol-0"}),
        (mounting("data", of=base(2, 2, slots=1)), {"smol-0", "smol-1"}),
        (
            mounting("data", of=base(2, 2, slots=2, tenants=[Tenant(namespace="team", device_slots=1)])),
            {"smol-0", "smol-1"},
        ),
        (mounting(of=base(2, 2, slots=2)), {"smol-0", "smol-1"}),
        (mounting("data", of=base(2, 2, slots=2, store=False)), {"smol-0", "smol-1"}),
    ],
    ids=["fewer engines", "fewer slots", "a smaller quota", "without the examples' claim", "without training"],
)
def test_a_complete_wave_stays_so_and_held_on_a_base_that_could_not_train_it_again(
    later: ObservedBase, homes: set[str]
) -> None:
    world = planned(GROWN, [training_wave("w", 4, serve=Serve(residency="Host"), dataset=DATASET)], engines(2))
    world.complete()
    before = condition(world, "w", "Ready")
    assert set(world.placements) == set(named("w", range(4)))
    world.base = later
    for _ in range(2):
        world.step()
        assert (world.status("w").phase, condition(world, "w", "Complete")[0]) == ("Complete", "True")
        assert {place.engine for each in world.placements.values() for place in each.places} == homes
        assert set(world.placements) == set(named("w", range(4)))
        assert (condition(world, "w", "Ready"), condition(world, "w", "Admitted")[0]) == (before, "True")
        assert world.recorded["team/w"].admitted


@pytest.mark.parametrize("paused", [False, True])
def test_what_a_wave_had_published_before_its_base_could_train_it_no_more_is_held(*, paused: bool) -> None:
    world = planned(GROWN, [training_wave("w", 2, dataset=DATASET)], engines(2))
    world.change("w", paused=paused)
    world.step()
    world.hear(Stage.PAUSED if paused else Stage.RUNNING, 5, published=published(5), saved=5)
    before = world.placements
    assert set(before) == set(named("w", [0, 1]))
    world.base = mounting(of=GROWN)
    for _ in range(2):
        world.step()
        assert world.placements == before
        assert condition(world, "w", "Admitted")[:2] == ("False", "SourceForbidden"), "nothing of it is trained"
        assert (world.recorded["team/w"].admitted, world.recorded["team/w"].reason) == (False, "SourceForbidden")


@pytest.mark.parametrize("paused", [False, True])
def test_what_a_base_lets_go_of_by_training_no_more_stays_held_and_begins_anew_once_it_does_again(
    *, paused: bool
) -> None:
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.change("w", paused=paused)
    world.step()
    world.hear(Stage.PAUSED if paused else Stage.RUNNING, 7, published=published(5), saved=7)
    world.base = base(store=False)
    world.step()
    assert world.leases == {}
    world.start_anew(2)
    for _ in range(2):
        world.step()
        assert condition(world, "w", "Admitted")[:2] == ("False", "NoTrainingStore")
        assert {each.source for each in world.placements.values()} == {published(5).source}
        assert set(world.placements) == set(named("w", [0, 1]))
    elsewhere = msgspec.structs.replace(TRAINING, store=TrainingStore(uri="pvc://training/others"))
    world.base = msgspec.structs.replace(base(), spec=msgspec.structs.replace(base().spec, training=elsewhere))
    world.change("w", paused=False)
    world.step()
    assert {lease.saved for _, lease in world.leases.values()} == {0}, "no checkpoint is waited for that it has not"
    assert world.training.training["team/w"].store.uri == "pvc://training/others"
    assert set(world.placements) == set(named("w", [0, 1]))
    for step, revision in ((1, None), (2, published(2))):
        world.say(Stage.RUNNING, step, published=revision)
        for _ in range(2):
            world.step()
            assert {each.source for each in world.placements.values()} == {(revision or published(5)).source}
            assert set(world.placements) == set(named("w", [0, 1]))
    assert world.training.training["team/w"].last_words == (), "what is told by engines themselves needs no record"


def test_a_wave_may_serve_what_a_policy_that_begins_anew_had_published() -> None:
    """This holds although the engine now trains with a different store and knows of no published revision."""
    world = planned(base(), [training_wave("w", 1)], engines(1))
    world.hear(Stage.RUNNING, 7, published=published(5), saved=7)
    world.base = base(store=False)
    world.step()
    world.start_anew(2)
    elsewhere = msgspec.structs.replace(TRAINING, store=TrainingStore(uri="pvc://training/others"))
    world.base = msgspec.structs.replace(base(), spec=msgspec.structs.replace(base().spec, training=elsewhere))
    world.step()
    for stage in (Stage.LOADING, Stage.RUNNING):
        world.hear(stage, 0)
    world.waves.append(wave("v", sources={"team/w-0": published(5).source.uri}))
    for _ in range(2):
        world.step()
        assert condition(world, "v", "Admitted")[0] == "True"
        assert world.placements["team/w-0"].source == published(5).source


def test_a_wave_that_was_cancelled_stays_so_though_it_could_not_be_trained() -> None:
    world = planned(GROWN, [training_wave("w", 2, dataset=DATASET)], engines(2))
    world.change("w", cancelled=True)
    world.step()
    world.hear(Stage.CANCELLED, 3)
    world.base = mounting(of=GROWN)
    world.step()
    assert world.status("w").phase == "Cancelled"
    assert condition(world, "w", "Ready")[1] == "TrainingCancelled"
    assert training(world).policies.cancelled == 2


@pytest.mark.parametrize("partly_read", [False, True])
def test_progress_of_policies_is_remembered_while_their_base_does_not_train(*, partly_read: bool) -> None:
    """This includes the reward history, which no engine reports again for a complete policy."""
    world = planned(base(), [training_wave("w", 2)], engines(1))
    world.complete()
    if partly_read:  # as after a rollback
        in_part(world)
    world.base = base(store=False)
    found = world.step()
    assert found.training[KEY].del_rewards == ()
    assert world.training.training["team/w"].policies == tuple(named("w", [0, 1]))
    assert set(world.placements) == set(named("w", [0, 1]))
    world.start_anew(2)
    world.base = base()
    world.step()
    assert (world.status("w").phase, training(world).progress) == ("Complete", f"{STEPS}/{STEPS}")
