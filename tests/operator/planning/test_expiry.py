"""A wave whose ttl has ended counts as deleted for all others, and its own status says so."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.records import Mentions, Tier, WaveRecord
from mint_contracts.resources import AdapterWaveStatus, Tenant
from mint_operator.planning.conditions import stamp
from mint_operator.planning.events import transition
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.snapshot import ObservedWave, Snapshot
from tests.operator.drawn_worlds import worlds
from tests.operator.instructions import instructions
from tests.operator.unread_worlds import Settled
from tests.operator.worlds import KEY, NOW, base, engine, homes, placed, snapshot, unread, wave

EIGHT = [f"o/{index}" for index in range(8)]


def lasting(of: ObservedWave, ttl: str) -> ObservedWave:
    """Return the wave with this ttl, created an hour ago."""
    meta = msgspec.structs.replace(of.meta, created=stamp(NOW - 3600.0))
    serve = msgspec.structs.replace(of.spec.serve, ttl=ttl)
    return msgspec.structs.replace(of, meta=meta, spec=msgspec.structs.replace(of.spec, serve=serve))


def conditions(status: AdapterWaveStatus) -> dict[str, tuple[str, str]]:
    return {each.type: (each.status, each.reason) for each in status.conditions}


def message(status: AdapterWaveStatus, kind: str) -> str:
    return next(each.message for each in status.conditions if each.type == kind)


def replanned(of: Snapshot, *waves: ObservedWave) -> Plan:
    return plan(msgspec.structs.replace(of, waves=waves))


def does(of: Plan) -> dict[str, Any]:
    """Return a plan's instructions without what it reports about waves, in statuses or in the map."""
    changes = {key: msgspec.structs.replace(each, set_waves=()) for key, each in of.changes.items()}
    doing = {what: each for what, each in instructions(of).items() if what not in {"wave_statuses", "due"}}
    return doing | {"changes": {key: each for key, each in changes.items() if each}}


def records(of: Plan) -> dict[str, WaveRecord]:
    """Return the wave records that a plan writes to the map."""
    return {each.wave: each for change in of.changes.values() for each in change.set_waves}


def test_an_expired_wave_is_complete_and_says_since_when_and_what_to_do() -> None:
    status = plan(snapshot(base(), [lasting(wave("one", ["a/0", "a/1"]), "1h")])).wave_statuses["team/one"]
    assert (status.phase, status.summary, status.counts.adapters, status.counts.wanted) == ("Expired", "0/0", 2, 0)
    assert conditions(status) == {
        "Ready": ("False", "Expired"),
        "Admitted": ("False", "Expired"),
        "Placed": ("False", "Expired"),
        "Progressing": ("False", "Expired"),
        "Complete": ("True", "Expired"),
    }
    assert message(status, "Complete").startswith(f"expired at {stamp(NOW)} (spec.serve.ttl 1h); ")
    assert "Raise or remove spec.serve.ttl" in message(status, "Ready")


def test_the_map_tells_the_same_and_what_it_asked_for() -> None:
    one = lasting(wave("one", ["a/0", "a/1"], replicas=2, priority=3, engines=(1, 0)), "1h")
    found = plan(snapshot(base(), [one]))
    assert records(found) == {
        "team/one": WaveRecord(
            *("team/one", "names", 2, 2, Tier.DEVICE),
            slots=4,
            priority=3,
            engines=("smol-0", "smol-1"),
            reason="Expired",
            message=message(found.wave_statuses["team/one"], "Complete"),
            mentions=Mentions(),
        )
    }
    assert "load only on demand or for other waves" in records(found)["team/one"].message


def test_the_map_tells_nothing_of_it_to_a_base_that_it_may_use_no_more() -> None:
    one, of = lasting(wave("one", ["a/0"], namespace="other"), "1h"), base()
    spec = msgspec.structs.replace(of.spec, tenants=[Tenant("other", weight=2, device_slots=8)])
    [record] = records(plan(snapshot(msgspec.structs.replace(of, spec=spec), [one]))).values()
    assert (record.reason, record.weight, record.quota) == ("Expired", 2, 8)
    found = plan(snapshot(of, [one]))
    assert (records(found), found.wave_statuses["other/one"].phase) == ({}, "Expired")


def test_admission_says_when_a_wave_will_expire() -> None:
    of = snapshot(base(), [lasting(wave("one", ["a/0"]), "2h")])
    status = plan(of).wave_statuses["team/one"]
    assert "Complete" not in conditions(status)
    assert message(status, "Admitted").endswith(f"until {stamp(NOW + 3600)} (spec.serve.ttl)")


@pytest.mark.parametrize(
    ("ttl", "expired"), [("", False), ("1h1s", False), ("1h", True), ("59m", True), ("7d", False)]
)
def test_it_expires_at_the_second_at_which_its_ttl_ends(ttl: str, expired: bool) -> None:
    of = snapshot(base(), [lasting(wave("one", ["a/0"]), ttl)])
    assert (plan(of).wave_statuses["team/one"].phase == "Expired") is expired


def test_its_placements_go_but_not_those_that_another_wave_wants_too() -> None:
    waves = [wave("one", ["a/0", "a/1"]), wave("two", ["a/1"])]
    before = placed(plan(snapshot(base(), waves)))
    found = plan(snapshot(base(), [lasting(waves[0], "1h"), waves[1]], placements=before))
    assert found.changes[KEY].del_placements == ("a/0",)
    assert placed(found, before)["a/1"].waves == ("team/two",)


def test_its_slots_and_its_quota_are_free_for_others() -> None:
    of = base(slots=16)
    spec = msgspec.structs.replace(of.spec, tenants=[Tenant("other", device_slots=8)])
    of = msgspec.structs.replace(of, spec=spec)
    first, then = wave("first", EIGHT, namespace="other"), wave("then", ["u/1"], namespace="other")
    waiting = plan(snapshot(of, [first, then])).wave_statuses["other/then"]
    assert conditions(waiting)["Admitted"] == ("False", "WaitingForQuota")
    assert homes(placed(plan(snapshot(of, [lasting(first, "1h"), then])))) == {"u/1": ["smol-0"]}


def test_a_longer_ttl_or_none_brings_it_back_and_nothing_of_the_end_is_left() -> None:
    one = lasting(wave("one", ["a/0"]), "1h")
    over = msgspec.structs.replace(one, status=plan(snapshot(base(), [one])).wave_statuses["team/one"])
    for ttl in ("2h", ""):
        found = plan(snapshot(base(), [lasting(over, ttl)]))
        status = found.wave_statuses["team/one"]
        assert (status.phase, conditions(status)["Admitted"][0]) == ("Placing", "True")
        assert "Complete" not in conditions(status)
        assert homes(placed(found)) == {"a/0": ["smol-0"]}
    unknown = plan(snapshot(base(), [lasting(over, "")], redis_ok=False)).wave_statuses["team/one"]
    broken = msgspec.structs.replace(base(), defect="spec.engine.device: no such device")
    kept = plan(snapshot(broken, [lasting(over, "")])).wave_statuses["team/one"]
    for status in (unknown, kept):
        assert (status.phase, "Complete" in conditions(status)) == ("Pending", False)


def test_it_expires_over_a_base_that_cannot_be_read_or_is_not_there_and_while_redis_is_away() -> None:
    one = lasting(wave("one", ["a/0"]), "1h")
    before = placed(plan(snapshot(base(), [lasting(one, "")])))
    broken = msgspec.structs.replace(base(), defect="spec.engine.device: no such device")
    found = plan(snapshot(broken, [one], placements=before))
    assert found.changes[KEY].del_placements == ("a/0",)
    for of in (snapshot(broken, [one]), snapshot(None, [one]), snapshot(base(), [one], redis_ok=False)):
        assert plan(of).wave_statuses["team/one"].phase == "Expired"


def test_a_wave_that_cannot_be_read_keeps_its_placements_past_its_end() -> None:
    """Only its spec says when it ends."""
    one = wave("one", ["a/0"])
    before = placed(plan(snapshot(base(), [one])))
    found = plan(snapshot(base(), [unread(lasting(one, "1h"))], placements=before))
    assert homes(placed(found, before)) == {"a/0": ["smol-0"]}


def test_the_plan_tells_when_time_alone_changes_it() -> None:
    waves = [wave("one", ["a/0"]), *(lasting(wave(f"w{ttl}", ["a/1"]), ttl) for ttl in ("30m", "2h", "3h"))]
    assert plan(snapshot(base(), waves)).due == NOW + 3600
    assert plan(snapshot(base(), waves, now=NOW + 7200)).due is None


def test_one_event_tells_of_the_end() -> None:
    one = lasting(wave("one", ["a/0"], status=AdapterWaveStatus(phase="Ready")), "1h")
    status = plan(snapshot(base(), [one])).wave_statuses["team/one"]
    event = transition("AdapterWave", one.meta, one.status, status, NOW)
    assert event is not None
    assert (event["type"], event["reason"]) == ("Normal", "Expired")
    assert transition("AdapterWave", one.meta, status, status, NOW) is None


@given(worlds(), st.data())
def test_an_expired_wave_gets_nothing_and_takes_nothing_from_others(of: Snapshot, data: st.DataObject) -> None:
    """All actions, and everything reported about others, are the same as without the wave."""
    over = {each.meta.key for each in of.waves if data.draw(st.booleans())}
    waves = [lasting(each, "1h") if each.meta.key in over else each for each in of.waves]
    found = replanned(of, *waves)
    without = replanned(of, *[each for each in of.waves if each.meta.key not in over])
    assert does(found) == does(without)
    assert {key: each for key, each in found.wave_statuses.items() if key not in over} == without.wave_statuses
    assert {key: each for key, each in records(found).items() if key not in over} == records(without)
    assert {found.wave_statuses[key].phase for key in over} <= {"Expired"}
    assert {records(found)[key].admitted for key in over & records(found).keys()} <= {False}


@given(worlds(), st.data())
def test_before_its_end_a_wave_with_a_ttl_is_as_one_without(of: Snapshot, data: st.DataObject) -> None:
    ttls = {each.meta.key: data.draw(st.sampled_from(["", "61m", "365d"])) for each in of.waves}
    found = replanned(of, *[lasting(each, ttls[each.meta.key]) for each in of.waves])
    without = replanned(of, *[lasting(each, "") for each in of.waves])
    assert does(found) == does(without)
    for key, status in found.wave_statuses.items():
        other = without.wave_statuses[key]
        assert (status.phase, conditions(status), status.counts) == (other.phase, conditions(other), other.counts)


@pytest.mark.parametrize("namespace", ["team", "other"])
def test_over_a_base_that_cannot_be_read_it_is_told_of_as_over_any_other(namespace: str) -> None:
    """Also if only the map shows that it was admitted, because the base's tenants cannot be read any more."""
    broken, of = msgspec.structs.replace(base(), defect="spec.engine.device: no such device"), base()
    spec = msgspec.structs.replace(of.spec, tenants=[Tenant("team", 2, 8), Tenant("other", 3, 7)])
    readable = msgspec.structs.replace(of, spec=spec)
    goes, stays = wave("goes", ["a/0", "a/1"], namespace=namespace), wave("stays", ["a/1"])
    world = Settled(readable, [lasting(goes, "1h1s"), stays])
    world.waves[0] = lasting(world.waves[0], "1h")
    recorded = records(plan(world.seen()))
    world.base = broken
    world.plan()
    key = f"{namespace}/goes"
    assert (world.state.waves[key], world.state.waves[key].reason) == (recorded[key], "Expired")
    assert list(world.state.placements) == ["a/1"]
    assert world.plan().changes == {}, "it is told once"
    world.base = readable
    assert world.plan().changes[KEY].set_waves == (), "as it would be told of then"
    world.base = broken
    del world.waves[0]
    world.plan()
    assert list(world.state.waves) == ["team/stays"]


def test_the_status_of_an_expired_wave_stays_the_same_for_ever() -> None:
    one = lasting(wave("one", ["a/0"]), "1h")
    status = plan(snapshot(base(), [one], [engine(0)])).wave_statuses["team/one"]
    later = snapshot(base(), [msgspec.structs.replace(one, status=status)], [engine(0)], now=NOW + 86_400)
    assert plan(later).wave_statuses["team/one"] == status
