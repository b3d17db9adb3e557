"""Names of policies: each is trained by one wave, and no wave serves another adapter under it."""

from typing import Any

import pytest

from mint_contracts.resources import Tenant
from mint_contracts.training import Policies, Policy
from mint_contracts.training_records import Order, Stage
from mint_operator.planning.snapshot import ObservedWave
from tests.operator import worlds
from tests.operator.training_worlds import World, base, condition, engines, orders, planned, published, training_wave

X, LATER = Policies(list=(Policy(name="team/x"),)), "2026-01-02T00:00:00Z"


def test_two_waves_can_not_train_one_policy() -> None:
    given = Policies(list=(Policy(name="team/x"),))
    world = planned(base(), [training_wave("a", policies=given), training_wave("b", policies=given)], engines(1))
    assert world.leases["team/x"][1].wave == "team/a"
    assert condition(world, "b", "Admitted")[1] == "PolicyConflict"
    world.waves.pop(0)
    world.step()
    assert world.leases["team/x"][1].wave == "team/b"


@pytest.mark.parametrize("other", [training_wave("v", policies=X, created=LATER), worlds.wave("s", ["team/x"])])
def test_a_wave_that_was_cancelled_before_it_began_stays_so_and_leaves_its_names(other: ObservedWave) -> None:
    world = planned(base(), [training_wave("w", policies=X, cancelled=True)], engines(1))
    world.waves.append(other)
    for _ in range(2):
        world.step()
        assert world.status("w").phase == "Cancelled"
        assert condition(world, other.meta.name, "Admitted")[0] == "True"


def test_a_policy_named_like_an_adapter_that_another_wave_serves_is_not_trained() -> None:
    given = Policies(list=(Policy(name="team/x", start_from="team/y"),))
    world = World(base(), [worlds.wave("s", ["team/x", "team/y"]), training_wave("w", policies=given)], engines(1))
    for _ in range(2):
        world.step()
        assert world.leases == {}
        assert condition(world, "w", "Admitted")[1:] == (
            "PolicyConflict",
            "policy team/x has the name of an adapter that wave team/s serves from pvc://samples/adapters/team/x; "
            "choose another name, or delete that wave",
        )
    world.waves[0] = worlds.wave("s", ["team/y"])
    world.step()
    world.step()
    assert list(world.leases) == ["team/x"], "what it starts from may be served by anybody"


def test_a_policy_may_be_served_as_it_was_published_before() -> None:
    given = Policies(list=(Policy(name="team/x"),))
    before = {"team/x": "pvc://training/runs/revisions/team/x/.published/abc"}
    world = planned(base(), [worlds.wave("s", sources=before), training_wave("w", policies=given)], engines(1))
    world.step()
    assert list(world.leases) == ["team/x"]


def test_training_goes_on_when_another_wave_serves_the_name() -> None:
    world = planned(base(), [training_wave("w", 1)], engines(1))
    world.hear(Stage.RUNNING, 1, published=published(1))
    world.waves.append(worlds.wave("z", ["team/w-0"]))
    world.step()
    assert orders(world) == {Order.RUN}
    assert condition(world, "z", "Admitted")[1] == "PolicyConflict"


def test_a_complete_wave_keeps_its_names_from_a_later_one_of_higher_priority() -> None:
    given = Policies(list=(Policy(name="team/x"),))
    world = planned(base(), [training_wave("w", policies=given)], engines(1))
    world.complete()
    world.waves.append(training_wave("v", policies=given, priority=9))
    world.step()
    assert world.status("w").phase == "Complete"
    assert list(world.placements) == ["team/x"]
    assert condition(world, "v", "Admitted")[1] == "PolicyConflict"


@pytest.mark.parametrize(
    "theirs",
    [
        worlds.wave("s", sources={"team/x": "s3://private/x"}, namespace="acme", priority=1),
        training_wave("w", policies=X, namespace="acme", priority=1),
    ],
)
@pytest.mark.parametrize(
    "ours", [worlds.wave("v", ["team/x"], created=LATER), training_wave("v", policies=X, created=LATER)]
)
def test_a_name_conflict_with_another_namespace_discloses_nothing_else(
    theirs: ObservedWave, ours: ObservedWave
) -> None:
    world = planned(base(tenants=[Tenant(namespace="acme")]), [theirs], engines(1))
    world.hear(Stage.RUNNING, 1, published=published(1))
    world.waves.append(ours)
    world.step()
    status = world.status("v")
    assert condition(world, "v", "Admitted")[0] == "False"
    messages = " ".join(each.message for each in status.conditions)
    assert "a wave of another namespace" in messages
    assert not any(secret in messages for secret in ("acme", "private", "revisions"))


EARLIER = "2025-12-01T00:00:00Z"


@pytest.mark.parametrize("step", [0, 1])
def test_no_older_wave_of_another_namespace_takes_the_name_of_what_trains(step: int) -> None:
    world = planned(base(tenants=[Tenant(namespace="acme")]), [training_wave("w", policies=X)], engines(1))
    world.hear(Stage.RUNNING, step, published=published(step) if step else None)
    theirs = worlds.wave("s", sources={"team/x": "s3://acme/x"}, namespace="acme", created=EARLIER)
    world.waves.append(theirs)
    for later in range(step + 1, step + 3):
        world.step()
        assert condition(world, "s", "Admitted")[1] == "PolicyConflict"
        world.say(Stage.RUNNING, later, published=published(later))
    world.step()
    assert world.placements["team/x"].source == published(step + 2).source
    assert world.placements["team/x"].waves == ("team/w",)


def test_another_namespace_may_serve_what_a_wave_has_published() -> None:
    world = planned(base(tenants=[Tenant(namespace="acme")]), [training_wave("w", policies=X)], engines(1))
    world.say(Stage.RUNNING, 1, published=published(1))
    same = {"team/x": published(1).source.uri}
    world.waves.append(worlds.wave("s", sources=same, replicas=1, namespace="acme", created=EARLIER))
    world.step()
    assert condition(world, "s", "Admitted")[0] == "True"
    assert world.placements["team/x"].waves == ("acme/s", "team/w")


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("first", [{"created": EARLIER}, {"priority": 9}])
def test_no_wave_that_comes_first_takes_the_name_of_what_trains_before_that_ends(
    step: int, first: dict[str, Any]
) -> None:
    world = planned(base(), [training_wave("w", policies=X)], engines(1))
    world.hear(Stage.RUNNING, step, published=published(step) if step else None)
    world.waves.append(worlds.wave("s", ["team/x"], **first))
    for later in range(step + 1, step + 3):
        world.step()
        reason, message = condition(world, "s", "Admitted")[1:]
        assert reason == "PolicyConflict"
        assert message.startswith(
            "adapter team/x is being trained by wave team/w; serve it after that wave has published it, or choose "
        )
        world.say(Stage.RUNNING, later, published=published(later))
    world.step()
    assert world.placements["team/x"].waves == ("team/w",)
    world.complete()
    assert world.placements["team/x"].waves == ("team/s",)


def test_a_wave_of_the_namespace_may_serve_a_revision_that_has_been_superseded() -> None:
    world = planned(base(), [training_wave("w", policies=X)], engines(1))
    before = "pvc://training/runs/revisions/team/x/.published/abc"
    world.say(Stage.RUNNING, 1, published=published(1))
    world.waves.append(worlds.wave("s", sources={"team/x": before}, created=EARLIER))
    world.step()
    assert condition(world, "s", "Admitted")[0] == "True"
    assert world.placements["team/x"].source.uri == before
