"""Slots of training waves: a gang gets all or none, an elastic wave what is free; both keep them until the end."""

from typing import Any

import msgspec
import pytest

from mint_contracts.records import Failure
from mint_contracts.resources import Serve, Tenant
from mint_contracts.training import ConfigMapKey, Dataset, Policies, Policy, PolicyTemplate
from mint_contracts.training_records import Stage
from mint_operator.planning.sizes import Size
from mint_operator.planning.snapshot import ObservedBase
from tests.operator import worlds
from tests.operator.training_worlds import (
    STEPS,
    base,
    condition,
    engines,
    named,
    planned,
    published,
    training,
    training_wave,
)


def test_a_wave_trains_together_on_one_engine_and_its_policies_are_complete() -> None:
    template = PolicyTemplate(name_prefix="acme/x", rank=4, seed=7)
    world = planned(base(2, 2), [training_wave("w", policies=Policies(template=template, count=3))], engines(2))
    assert list(world.leases) == [f"team/acme/x-{index}" for index in range(3)]
    assert len({engine for engine, _ in world.leases.values()}) == 1
    settings = [lease.settings for _, lease in world.leases.values()]
    assert [(each.rank, each.alpha, each.seed) for each in settings] == [(4, 16.0, 7), (4, 16.0, 8), (4, 16.0, 9)]
    record = world.training.training["team/w"]
    assert record.store.uri == "pvc://training/runs"
    assert record.train.policies == Policies()
    assert record.policies == tuple(world.leases)
    assert world.placements == {}


def test_a_wave_over_a_base_that_does_not_come_up_says_why_it_does_not() -> None:
    why = Failure("SourceNotFound", "pvc://models/smol holds no model", terminal=True)
    world = planned(base(), [training_wave("w", 2)], [])
    status, reason, message = condition(world, "w", "Ready")
    assert (status, reason) == ("False", "EnginesStarting")
    assert message.startswith("needs 2 device slots for its policies")
    assert message.endswith("; the base model is not ready: 0 of 1 engines ready, 1 needed")
    assert condition(world, "w", "Admitted")[:2] == ("False", "WaitingForCapacity")
    world.engines = [worlds.engine(0, ready=False, failure=why)]
    for _ in range(2):  # without a place, and with one on an engine that lives but does not train
        world.step()
        for kind in ("Ready", "Complete", "Progressing"):
            _, reason, message = condition(world, "w", kind)
            assert reason == "SourceNotFound"
            expected = "the base model is not ready: 0 of 1 engines ready, 1 needed; smol-0: SourceNotFound: pvc://"
            assert expected in message


def test_a_wave_that_no_engine_can_take_alone_spreads() -> None:
    world = planned(base(2, 2, slots=3), [training_wave("w", 5)], engines(2))
    assert len(world.leases) == 5
    assert {engine for engine, _ in world.leases.values()} == {"smol-0", "smol-1"}


def test_a_gang_has_slots_for_all_or_none() -> None:
    serving = worlds.wave("s", ["a", "b"])
    world = planned(base(slots=4), [serving, training_wave("w", 3)], engines(1))
    assert world.leases == {}
    assert world.status("w").phase == "Queued"
    assert condition(world, "w", "Admitted")[:2] == ("False", "WaitingForCapacity")
    world.waves = [msgspec.structs.replace(serving, spec=worlds.wave("s", ["a"]).spec), world.waves[1]]
    world.step()
    world.step()
    assert len(world.leases) == 3


def test_an_elastic_wave_takes_what_is_free_and_the_rest_follows() -> None:
    world = planned(
        base(slots=4),
        [worlds.wave("s", ["a", "b"]), training_wave("w", 3, admission="Elastic", serve=Serve(residency="Host"))],
        engines(1),
    )
    world.step()
    assert list(world.leases) == named("w", [0, 1])
    world.hear(Stage.COMPLETE, STEPS, "team/w-0", published=published(STEPS))
    assert set(world.leases) == set(named("w", [0, 1, 2]))
    assert training(world).policies.complete == 1


def test_a_wave_that_waits_for_memory_keeps_no_slot_from_one_that_trains() -> None:
    waves = [worlds.wave(f"host-{name}", [name], residency="Host") for name in "ab"]
    world = planned(base(slots=8), waves, engines(1), sizes=dict.fromkeys("ab", Size(8, 700 << 10)))
    assert condition(world, "host-b", "Admitted")[1] == "WaitingForCapacity"
    world.waves.append(training_wave("w", 2, created="2026-01-02T00:00:00Z"))
    world.step()
    assert len(world.leases) == 2


def test_training_keeps_its_slots_from_a_wave_of_higher_priority() -> None:
    world = planned(base(slots=4), [training_wave("w", 3)], engines(1))
    before = world.leases
    world.waves.append(worlds.wave("s", ["a", "b", "c"], priority=100))
    world.step()
    assert world.leases == before
    assert world.status("s").phase == "Pending"


@pytest.mark.parametrize(
    ("of", "fields", "why"),
    [
        (base(store=False), {}, "NoTrainingStore"),
        (base(), {"policies": Policies(template=PolicyTemplate(rank=64), count=1)}, "RankTooLarge"),
        (base(), {"policies": Policies(list=(Policy(name="../x"),))}, "InvalidRequest"),
        (base(), {"dataset": Dataset(uri="pvc://elsewhere/x.jsonl")}, "SourceForbidden"),
        (base(), {"dataset": Dataset(uri="hf://datasets/acme/x.jsonl", revision="main")}, "SourceForbidden"),
        (base(), {"dataset": Dataset(config_map=ConfigMapKey("lessons"))}, "SourceNotFound"),
        (base(slots=3), {"count": 4}, "CapacityExceeded"),
        (base(slots=3), {"count": 2, "serve": Serve(replicas=2)}, "CapacityExceeded"),
    ],
)
def test_a_wave_that_can_never_train_says_so_at_once(of: ObservedBase, fields: dict[str, Any], why: str) -> None:
    world = planned(of, [training_wave("w", **fields)], engines(1))
    assert world.status("w").phase == "Failed"
    assert condition(world, "w", "Complete")[:2] == ("False", why)
    assert world.leases == {}


def test_what_takes_no_slot_stays_where_training_has_more_slots_than_there_are_any_more() -> None:
    """Training keeps what it has when deviceSlots, of the base or of a namespace, is lowered."""
    wave = training_wave("w", 4, admission="Elastic", serve=Serve(residency="Host"))
    world = planned(base(slots=4), [wave, worlds.wave("s", ["a"], residency="Host")], engines(1))
    world.base = base(slots=3)
    world.waves.append(worlds.wave("late", ["b"]))
    world.step()
    assert (len(world.leases), list(world.placements)) == (4, ["a"])
    message = condition(world, "late", "Admitted")[2]
    assert message.startswith("needs 1 more device slots; waves ahead of it hold 4 of 3 (1 engines x 3), 0 are free")
    world.base = base(slots=4, tenants=[Tenant(namespace="team", device_slots=3)])
    world.step()
    assert (len(world.leases), list(world.placements)) == (4, ["a"])
