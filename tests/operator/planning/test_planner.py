"""The planner's decisions, case by case."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from mint_contracts.records import BaseRecord, EngineView, MapChange, MapState, Tier
from mint_contracts.resources import AdapterWaveStatus, BaseModelStatus, Residency, Tenant
from mint_operator.planning.plan import plan
from mint_operator.planning.sizes import Size
from mint_operator.planning.snapshot import Snapshot
from tests.operator import training_worlds
from tests.operator.worlds import KEY, base, engine, homes, placed, snapshot, source, wave


def status(of: Snapshot, name: str) -> AdapterWaveStatus:
    return plan(of).wave_statuses[f"team/{name}"]


def reason(of: Snapshot, name: str, kind: str = "Admitted") -> tuple[str, str]:
    found = next(each for each in status(of, name).conditions if each.type == kind)
    return found.reason, found.message


SIX = [f"a/{letter}" for letter in "bcdefg"]


def test_six_adapters_one_of_them_twice_are_spread_evenly_over_two_engines() -> None:
    waves = [wave("five", SIX[1:]), wave("twice", SIX[:1], replicas=2)]
    found = homes(placed(plan(snapshot(base(2, 2), waves))))
    counts = Counter(engine for engines in found.values() for engine in engines)
    assert sorted(counts.values()) == [3, 4]
    assert sorted(found["a/b"]) == ["smol-0", "smol-1"]
    assert sorted(found) == SIX


def test_existing_places_stay_where_they_are_when_a_wave_comes_or_goes() -> None:
    first = placed(plan(snapshot(base(2, 2), [wave("one", SIX)])))
    more = [wave("one", SIX), wave("zwei", ["z/1", "z/2"])]
    second = placed(plan(snapshot(base(2, 2), more, placements=first)), first)
    assert {name: second[name] for name in SIX} == first
    third = placed(plan(snapshot(base(2, 2), more[1:], placements=second)), second)
    assert homes(third) == {name: homes(second)[name] for name in ["z/1", "z/2"]}


def test_the_map_tells_when_a_base_was_made() -> None:
    change = plan(snapshot(base(1, 1), [])).changes[KEY]
    assert change.base is not None
    assert datetime.fromtimestamp(change.base.created, UTC) == datetime(2026, 1, 1, tzinfo=UTC)


def test_the_map_tells_whether_a_base_trains_and_where() -> None:
    for store in (False, True):
        change = plan(snapshot(training_worlds.base(store=store), [])).changes[KEY]
        assert change.base is not None
        assert change.base.trains is store
        assert change.base.training == (training_worlds.TRAINING.store.source if store else None)


def test_every_place_says_why() -> None:
    first = placed(plan(snapshot(base(2, 2), [wave("one", ["a/b"])])))
    assert first["a/b"].places[0].why == "least loaded (0 copies) among 2 engines"
    alone = placed(plan(snapshot(base(), [wave("one", ["a/b"])])))
    assert alone["a/b"].places[0].why == "the only engine at the time"
    warm = [engine(0), engine(1, {"a/b": Tier.HOST})]
    second = placed(plan(snapshot(base(2, 2), [wave("one", ["a/b"])], warm, placements={})))
    assert second["a/b"].places[0].engine == "smol-1"
    assert second["a/b"].places[0].why.endswith("and already on Host there")


def test_two_waves_that_want_one_adapter_share_its_copies() -> None:
    waves = [wave("cold", ["a/b"], replicas=2, residency="Host"), wave("warm", ["a/b"])]
    found = placed(plan(snapshot(base(2, 2), waves)))["a/b"]
    assert found.waves == ("team/cold", "team/warm")
    assert [(place.engine, place.residency) for place in found.places] == [
        ("smol-0", Tier.DEVICE),
        ("smol-1", Tier.DEVICE),
    ]


def test_one_name_with_two_sources_is_refused_to_the_later_wave() -> None:
    waves = [wave("first", ["a/b"]), wave("later", sources={"a/b": "s3://bucket/b"}, created="2026-01-02T00:00:00Z")]
    of = snapshot(base(), waves)
    assert status(of, "first").phase == "Placing"
    assert status(of, "later").phase == "Failed"
    found, message = reason(of, "later")
    assert found == "SourceConflict"
    assert "team/first" in message


def test_a_wave_is_admitted_whole_or_not_at_all_and_a_smaller_one_behind_it_may_pass() -> None:
    waves = [
        wave("a-large", [f"l/{index}" for index in range(6)]),
        wave("b-waits", [f"w/{index}" for index in range(3)]),
        wave("c-small", ["s/1"]),
    ]
    of = snapshot(base(slots=8), waves)
    assert [status(of, name).phase for name in ("a-large", "b-waits", "c-small")] == ["Placing", "Pending", "Placing"]
    assert reason(of, "b-waits") == (
        "WaitingForCapacity",
        "needs 3 more device slots; waves ahead of it hold 6 of 8 (1 engines x 8), 2 are free; "
        "position 1 of 1 in the queue",
    )
    assert len(placed(plan(of))) == 7


def test_priority_comes_before_age() -> None:
    waves = [wave("old", [f"o/{index}" for index in range(8)]), wave("urgent", ["u/1"], priority=5)]
    of = snapshot(base(slots=8), waves)
    assert reason(of, "old")[0] == "WaitingForCapacity"
    assert homes(placed(plan(of))) == {"u/1": ["smol-0"]}


def test_a_wave_that_can_never_fit_says_so_with_numbers_and_what_to_do() -> None:
    of = snapshot(base(high=2, slots=2), [wave("big", [f"a/{index}" for index in range(5)])])
    assert status(of, "big").phase == "Failed"
    found, message = reason(of, "big")
    assert found == "CapacityExceeded"
    assert "5 adapters x 1 replicas = 5 device slots, but 2 engines x 2 slots = 4" in message
    assert "raise" in message
    of = snapshot(base(high=2), [wave("wide", ["a/b"], replicas=3)])
    assert reason(of, "wide")[0] == "CapacityExceeded"
    assert "3 engines" in reason(of, "wide")[1]


def test_host_and_disk_residency_take_no_slots() -> None:
    waves = [wave("cold", [f"a/{index}" for index in range(20)], residency="Disk")]
    assert len(placed(plan(snapshot(base(slots=1), waves)))) == 20


def sized(of: Snapshot, nbytes: int, *names: str) -> Snapshot:
    """Return the snapshot with these adapters' sizes, as reported by engines."""
    sizes = dict.fromkeys(names, Size(rank=8, bytes=nbytes))
    return msgspec.structs.replace(of, maps={KEY: msgspec.structs.replace(of.maps[KEY], sizes=sizes)})


def test_host_memory_of_policies_is_not_given_to_adapters() -> None:
    waves = [wave("one", SIX[:3], residency="Host")]
    fleet = [engine(0, training_bytes=1 << 19), engine(1)]
    of = sized(snapshot(base(2, 2), waves, fleet), 1 << 19, *SIX)  # 1 MiB of host memory on each
    assert sorted(homes(placed(plan(of))).values()) == [["smol-0"], ["smol-1"], ["smol-1"]]
    waves = [wave("one", SIX[:4], residency="Host")]
    of = sized(snapshot(base(2, 2), waves, fleet), 1 << 19, *SIX)
    assert reason(of, "one")[0] == "WaitingForCapacity"
    fleet = [engine(0, training_bytes=1 << 30), engine(1)]
    of = sized(snapshot(base(2, 2), [wave("warm", SIX[:4]), waves[0]], fleet), 1 << 19, *SIX)
    assert status(of, "warm").phase == "Placing", "slots are another matter"


def test_waves_of_higher_priority_take_the_slots_of_lower_ones_as_many_as_they_need() -> None:
    low = [
        wave(f"low-{index}", [f"l{index}/0", f"l{index}/1"], created=f"2026-01-0{index + 1}") for index in range(3)
    ]
    before = placed(plan(snapshot(base(slots=6), low)))
    assert len(before) == 6
    urgent = wave("urgent", ["u/0"], priority=9, created="2027-01-01")
    of = snapshot(base(slots=6), [*low, urgent], placements=before)
    now = placed(plan(of), before)
    assert set(now) == {"l0/0", "l0/1", "l1/0", "l1/1", "u/0"}, "the youngest of the lowest gives way"
    assert all(now[name] == before[name] for name in now if name in before)
    assert reason(of, "low-2")[0] == "WaitingForCapacity"


def test_bytes_that_engines_tell_bound_what_is_held_in_host_memory() -> None:
    waves = [wave("one", SIX[:2], residency="Host"), wave("two", SIX[2:4], residency="Host", created="2026-01-02")]
    of = snapshot(base(), waves)  # 1 MiB of host memory
    assert sorted(placed(plan(of))) == SIX[:4]
    known = sized(of, 300 << 10, *SIX)
    assert reason(known, "two")[0] == "WaitingForCapacity"
    assert sorted(placed(plan(known))) == SIX[:2]
    never = sized(of, 600 << 10, *SIX)
    assert reason(never, "one")[0] == "CapacityExceeded"
    assert "spec.adapters.hostMemory" in reason(never, "one")[1]


@pytest.mark.parametrize(("residency", "room"), [("Host", 1 << 20), ("Disk", 1 << 30)])
def test_what_no_engine_or_not_the_named_ones_can_hold_is_told_and_not_waited_for(
    residency: Residency, room: int
) -> None:
    alone = snapshot(base(2, 2), [wave("one", SIX[:1], residency=residency)])
    assert reason(sized(alone, room + 1, SIX[0]), "one")[0] == "CapacityExceeded", "no engine can, though both could"
    assert f"adapter {SIX[0]} takes" in reason(sized(alone, room + 1, SIX[0]), "one")[1]
    assert status(sized(alone, room, SIX[0]), "one").phase == "Placing"
    pinned = snapshot(base(2, 2), [wave("one", SIX[:2], residency=residency, engines=[1])])
    assert reason(sized(pinned, room // 2 + 1, *SIX), "one")[0] == "CapacityExceeded", "the other could"
    assert "list more engines in spec.serve.engines" in reason(sized(pinned, room // 2 + 1, *SIX), "one")[1]
    assert status(sized(pinned, room // 2, *SIX), "one").phase == "Placing"


@pytest.mark.parametrize(
    ("adapters", "replicas", "engines"),
    [(0, 1, 1), (4, 1, 1), (5, 1, 2), (8, 1, 2), (9, 1, 3), (1, 3, 3), (12, 1, 3)],
)
def test_engines_are_as_many_as_waves_need_between_min_and_max(adapters: int, replicas: int, engines: int) -> None:
    waves = [wave("one", [f"a/{index}" for index in range(adapters)], replicas=replicas)] if adapters else []
    found = plan(snapshot(base(low=1, high=3, slots=4), waves))
    assert found.base_statuses[KEY].engines.desired == engines
    replicas_of = {manifest.kind: manifest.body["spec"] for manifest in found.manifests if "spec" in manifest.body}
    assert replicas_of["StatefulSet"]["replicas"] == engines


def test_when_engines_go_their_adapters_move_and_no_others() -> None:
    many = [wave("one", [f"a/{index}" for index in range(4)]), wave("two", [f"b/{index}" for index in range(4)])]
    first = placed(plan(snapshot(base(high=2, slots=4), many)))
    second = placed(plan(snapshot(base(high=2, slots=4), many[:1], placements=first)), first)
    assert all(engines == ["smol-0"] for engines in homes(second).values())
    stayed = [name for name in second if homes(first)[name] == ["smol-0"]]
    assert all(second[name].places == first[name].places for name in stayed)


def test_a_second_copy_makes_room_when_only_engines_with_a_copy_have_slots() -> None:
    of = base(2, 2, slots=2)
    waves = [wave("ab", ["a/a", "a/b"])]
    first = placed(plan(snapshot(of, waves)))
    together = {
        name: msgspec.structs.replace(
            placement, places=tuple(msgspec.structs.replace(place, engine="smol-0") for place in placement.places)
        )
        for name, placement in first.items()
    }
    both = [*waves, wave("c", ["c/c"], replicas=2)]
    after = placed(plan(snapshot(of, both, placements=together)), together)
    assert sorted(homes(after)["c/c"]) == ["smol-0", "smol-1"]
    for name, placement in after.items():
        whys = " ".join(place.why for place in placement.places)
        assert not any(other in whys for other in after.keys() - {name}), "which may be another tenant's"
    assert Counter(engine for engines in homes(after).values() for engine in engines) == {"smol-0": 2, "smol-1": 2}


def test_when_the_map_is_lost_adapters_stay_with_those_that_hold_them() -> None:
    holding = [engine(0, dict.fromkeys(SIX[:4], Tier.DEVICE)), engine(1, dict.fromkeys(SIX[4:], Tier.DEVICE))]
    found = homes(placed(plan(snapshot(base(2, 2), [wave("one", SIX)], holding))))
    assert found == {name: ["smol-0" if name in SIX[:4] else "smol-1"] for name in SIX}


def test_when_the_map_is_lost_the_places_last_seen_come_first() -> None:
    first = placed(plan(snapshot(base(2, 2), [wave("one", SIX)])))
    second = plan(snapshot(base(2, 2), [wave("one", SIX)], [engine(0), engine(1)], remembered=first))
    assert placed(second) == first


def test_without_redis_nothing_is_written_or_forgotten() -> None:
    found = plan(snapshot(base(), [wave("one", SIX)], redis_ok=False))
    assert (dict(found.changes), found.forgets) == ({}, ())
    assert [manifest.kind for manifest in found.manifests] == [
        "ServiceAccount",
        "Service",
        "PodDisruptionBudget",
        "StatefulSet",
    ]


def test_a_base_that_is_gone_is_forgotten_once_its_engines_have_ended() -> None:
    first = placed(plan(snapshot(base(), [wave("one", SIX)])))
    draining = plan(snapshot(None, engines=[engine(0)], placements=first))
    assert draining.forgets == ()
    assert draining.changes[KEY].del_placements == tuple(SIX)
    assert plan(snapshot(None, engines=[engine(0, alive=False)], placements=first)).forgets == (KEY,)


def test_a_base_is_new_until_an_engine_of_it_has_been_ready() -> None:
    def is_new(engines: list[EngineView], record: BaseRecord | None, phase: str = "") -> bool:
        of = msgspec.structs.replace(base(), status=BaseModelStatus(phase=phase))
        change = plan(snapshot(of, engines=engines, state=MapState(1, record, {}, {}))).changes[KEY]
        assert change.base is not None
        return change.base.unserved

    created = int(base().meta.created_s)
    new, served = BaseRecord(KEY, created=created, unserved=True), BaseRecord(KEY, created=created)
    loading = [engine(0, ready=False)]
    assert is_new([], None)
    assert is_new(loading, new)
    assert not is_new([engine(0)], new)
    assert not is_new(loading, served, "Failed"), "which the map remembers"
    assert not is_new(loading, None, "Degraded"), "and the status, if the map was lost"
    assert is_new(loading, BaseRecord(KEY, created=created - 1)), "that was another base of its name"


def test_no_name_is_looked_for_in_the_store_or_catalog_of_a_base_that_is_gone() -> None:
    """Its engines may take an hour to end; until they have, gateways would be in doubt about the others' names."""
    record = BaseRecord(KEY, source("a"), 8, catalog=source("b"), trains=True)
    change = plan(snapshot(None, engines=[engine(0)], state=MapState(1, record, {}, {}))).changes[KEY]
    assert change == MapChange(base=BaseRecord(KEY, None, 8, trains=True))
    assert plan(snapshot(None, engines=[engine(0)], state=MapState(1, change.base, {}, {}))).changes == {}


def test_adapters_come_from_the_store_or_as_given() -> None:
    waves = [wave("named", ["a/b"]), wave("given", sources={"c/d": "pvc://extra/d"})]
    found = placed(plan(snapshot(base(claims=["extra"]), waves)))
    assert found["a/b"].source == source("a/b")
    assert found["c/d"].source.uri == "pvc://extra/d"


@pytest.mark.parametrize(
    ("of", "refused", "expected", "phase"),
    [
        (base(store=False), wave("w", ["a/b"]), "NoAdapterStore", "Failed"),
        (base(), wave("w", sources={"a/b": "pvc://elsewhere/b"}), "ClaimNotMounted", "Failed"),
        (base(), wave("w", ["a/b", "a/b"]), "InvalidRequest", "Failed"),
        (base(), wave("w", ["../b"]), "InvalidRequest", "Failed"),
        (base(), wave("w", sources={"a/b": "ftp://host/b"}), "SourceForbidden", "Failed"),
        (base(), wave("w", sources={"a/b": "hf://datasets/b"}, revision="main"), "SourceForbidden", "Failed"),
        (base(), wave("w", []), "InvalidRequest", "Failed"),
        (None, wave("w", ["a/b"]), "BaseModelNotFound", "Pending"),
    ],
)
def test_waves_that_cannot_be_served_are_refused_with_the_reason(
    of: object, refused: object, expected: str, phase: str
) -> None:
    found = snapshot(of, [refused])  # type: ignore[arg-type, list-item]
    assert reason(found, "w")[0] == expected
    assert reason(found, "w", "Ready")[0] == expected
    assert status(found, "w").phase == phase
    assert placed(plan(found)) == {}


@pytest.mark.parametrize("residency", ["Device", "Host"])
def test_the_record_of_a_wave_that_is_refused_tells_as_its_status_what_it_asks_for(residency: Residency) -> None:
    found = plan(snapshot(base(store=False), [wave("w", ["a/b", "a/c"], replicas=2, residency=residency)]))
    [record] = found.changes[KEY].set_waves
    assert (record.admitted, record.reason) == (False, "NoAdapterStore")
    assert record.adapters == found.wave_statuses["team/w"].counts.adapters == 2
    assert record.slots == (4 if residency == "Device" else 0)


def test_a_bad_wave_leaves_the_others_alone() -> None:
    of = snapshot(base(), [wave("bad", ["../b"]), wave("good", ["a/b"])])
    assert list(placed(plan(of))) == ["a/b"]


def test_waves_keep_to_the_engines_that_they_name_and_engines_come_for_them() -> None:
    of = snapshot(base(high=3, slots=4), [wave("pinned", ["p/1", "p/2"], engines=[2]), wave("free", SIX)])
    found = plan(of)
    assert found.base_statuses[KEY].engines.desired == 3
    where = homes(placed(found))
    assert where["p/1"] == where["p/2"] == ["smol-2"]
    assert all(len(engines) == 1 for engines in where.values())


@pytest.mark.parametrize("wanted", [{"engines": [3]}, {"engines": [0], "replicas": 2}, {"engines": [1, 2]}])
def test_a_wave_that_can_never_fit_the_engines_it_names_says_so(wanted: dict[str, Any]) -> None:
    names = [f"a/{index}" for index in range(9)] if len(wanted["engines"]) > 1 else ["a/b"]
    found, message = reason(snapshot(base(high=3, slots=4), [wave("pinned", names, **wanted)]), "pinned")
    assert found == "CapacityExceeded"
    assert "spec.serve.engines" in message


def test_namespaces_take_turns_in_proportion_to_their_weights_and_within_their_quotas() -> None:
    tenants = [Tenant(namespace="heavy", weight=3), Tenant(namespace="small", device_slots=1)]
    of = base(slots=8)
    of = msgspec.structs.replace(of, spec=msgspec.structs.replace(of.spec, tenants=tenants))
    waves = [
        wave(
            f"{namespace}-{index}", [f"{namespace}/{index}"], namespace=namespace, created=f"2026-01-0{day}T00:00:00Z"
        )
        for day, namespace in enumerate(("team", "heavy", "small"), start=1)
        for index in range(8)
    ]
    found = plan(snapshot(of, waves))
    admitted = Counter(key.partition("/")[0] for key in found.known[KEY].admission.turns)
    assert admitted == {"heavy": 5, "team": 2, "small": 1}
    waiting = [status for key, status in found.wave_statuses.items() if key.startswith("small/") and status.position]
    assert {next(c.reason for c in status.conditions if c.type == "Admitted") for status in waiting} == {
        "WaitingForQuota"
    }


@pytest.mark.parametrize(
    ("most", "first"), [(None, "acme/late"), (5, "acme/late"), (0, "team/early"), (-1, "team/early")]
)
def test_a_namespace_ranks_as_high_as_the_base_allows_it(most: int | None, first: str) -> None:
    of = base(slots=1)
    tenants = [Tenant(namespace="acme", max_priority=most)]
    of = msgspec.structs.replace(of, spec=msgspec.structs.replace(of.spec, tenants=tenants))
    late = wave("late", ["b/b"], namespace="acme", priority=1_000_000, created="2026-01-02T00:00:00Z")
    seen = snapshot(of, [wave("early", ["a/a"]), late])
    found = plan(seen)
    assert list(found.known[KEY].admission.turns) == [first]
    told = [each.message for each in found.wave_statuses["acme/late"].conditions if each.type == "Admitted"]
    lower = f"; spec.priority counts as {most}, the most that spec.tenants of the BaseModel allows namespace acme"
    assert [lower in message for message in told] == [most is not None]
    again = plan(seen, found.known)
    asks = [each.known[KEY].admission.asks.by_wave["acme/late"] for each in (found, again)]
    assert asks[0] is asks[1], "nothing has changed"


def test_nothing_is_disclosed_about_a_base_that_may_not_be_used() -> None:
    stranger = wave("stranger", ["a/b"], namespace="strangers")
    found = plan(snapshot(base(), [stranger])).wave_statuses["strangers/stranger"]
    missing = plan(snapshot(None, [stranger])).wave_statuses["strangers/stranger"]
    assert found == missing
    assert found.conditions[0].reason == "BaseModelNotFound"
