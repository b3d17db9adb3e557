"""Adapters that several waves want: where they are placed, and which wave has the name."""

import pytest

from mint_contracts.resources import Tenant
from mint_operator.planning.plan import Plan
from tests.operator.training_worlds import base
from tests.operator.unread_worlds import Settled, condition
from tests.operator.worlds import source, wave

LATER = "2026-01-02T00:00:00Z"


@pytest.mark.parametrize(
    ("first", "second", "held"),
    [([1], [], ["smol-1"]), ([], [2], ["smol-2"]), ([0, 2], [2], ["smol-2"]), ([1], [0, 1], ["smol-1"])],
)
def test_engines_that_one_wave_names_hold_what_it_shares(
    first: list[int], second: list[int], held: list[str]
) -> None:
    waves = [wave("one", ["a/0"], engines=first), wave("two", ["a/0"], engines=second, created=LATER)]
    world = Settled(base(3, 3), waves)
    assert world.homes("one") == world.homes("two") == {"a/0": held}
    assert world.plan().changes == {}


@pytest.mark.parametrize(
    ("first", "second", "replicas", "conflict"),
    [
        ([0], [1], 1, "on 1 engines (smol-1 only) here but on 1 engines (smol-0 only) by wave team/one"),
        ([0, 1], [1, 2], 1, "on 1 engines (smol-1, smol-2 only) here but on 1 engines (smol-0, smol-1 only) by"),
        ([0], [], 2, "on 2 engines here but on 1 engines (smol-0 only) by wave team/one"),
    ],
)
def test_where_no_engines_suit_both_the_later_wave_is_told(
    first: list[int], second: list[int], replicas: int, conflict: str
) -> None:
    world = Settled(base(3, 3), [wave("one", ["a/0"], engines=first)])
    held = world.homes("one")
    world.waves.append(wave("two", ["a/0"], engines=second, replicas=replicas, created=LATER))
    found = world.plan()
    assert world.homes("one") == held
    status, reason, message = condition(found, "two", "Admitted")
    assert (status, reason) == ("False", "EnginesConflict")
    assert f"adapter a/0 is wanted {conflict}" in message


def _admitted(of: Plan, wave: str) -> str:
    return next(each.reason for each in of.wave_statuses[wave].conditions if each.type == "Admitted")


def test_waves_of_another_namespace_cannot_take_an_adapters_name() -> None:
    tenants = [Tenant(namespace="acme")]
    theirs = wave("taker", ["b/0"], namespace="acme", priority=9)
    world = Settled(base(tenants=tenants), [wave("one", ["a/0"], created=LATER), theirs])
    world.waves[1] = wave("taker", sources={"a/0": "s3://acme/x"}, namespace="acme", priority=9)
    for _ in range(2):
        assert _admitted(world.plan(), "acme/taker") == "SourceConflict"
        assert world.state.placements["a/0"].source == source("a/0")
    world.waves.pop(0)
    world.plan()
    assert _admitted(world.plan(), "acme/taker") == "Admitted"
    assert world.state.placements["a/0"].source.uri == "s3://acme/x"


def test_a_wave_that_shared_an_adapter_cannot_replace_its_source() -> None:
    tenants = [Tenant(namespace="acme")]
    shares = wave("taker", ["a/0"], namespace="acme", priority=9)
    world = Settled(base(tenants=tenants), [wave("one", ["a/0"], created=LATER), shares])
    assert list(world.state.placements["a/0"].waves) == ["acme/taker", "team/one"]
    world.waves[1] = wave("taker", sources={"a/0": "s3://acme/x"}, namespace="acme", priority=9)
    for _ in range(2):
        assert _admitted(world.plan(), "acme/taker") == "SourceConflict"
    assert world.state.placements["a/0"].source == source("a/0")
    assert list(world.state.placements["a/0"].waves) == ["team/one"]


def test_within_a_namespace_priority_still_decides() -> None:
    world = Settled(base(), [wave("one", ["a/0"])])
    world.waves.append(wave("urgent", sources={"a/0": "s3://acme/x"}, priority=9))
    world.plan()
    assert _admitted(world.plan(), "team/one") == "SourceConflict"
    assert world.state.placements["a/0"].source.uri == "s3://acme/x"
