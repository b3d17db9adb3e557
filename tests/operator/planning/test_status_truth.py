"""Statuses are truthful: which status follows from the reports of engines, pods and Redis."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from mint_contracts.records import EngineView, Failure, Held, Place, Placement, Tier
from mint_contracts.resources import (
    AdapterWaveStatus,
    BaseModelStatus,
    Condition,
    LoadingStatus,
    SlotCounts,
    TierCounts,
    WaveCounts,
)
from mint_contracts.source import Source
from mint_operator.planning import status_write
from mint_operator.planning.conditions import Finding, follow
from mint_operator.planning.events import transition
from mint_operator.planning.manifests import Manifest
from mint_operator.planning.plan import plan
from mint_operator.planning.snapshot import Child, EnginePod, ObservedWave
from tests.operator.statuses import (
    CORRUPT,
    HELD,
    NO_SOURCE,
    RETRYABLE,
    TERMINAL,
    base_after,
    ready,
    reconciling,
    stalled,
    wave_after,
    with_pods,
)
from tests.operator.worlds import KEY, NOW, RELEASE, base, engine, placed, snapshot, source, wave, written

PULLING = Failure("ImagePullBackOff", "no such image", terminal=False)
UNSCHEDULABLE = Failure("Unschedulable", "0/1 nodes are available: insufficient memory", terminal=False)


def owners(of: Manifest) -> list[str]:
    return [each["uid"] for each in of.body["metadata"]["ownerReferences"]]


@pytest.mark.parametrize(
    ("engines", "phase", "verdict", "summary"),
    [
        (HELD, "Ready", ("True", "AdaptersReady"), "2/2"),
        ([HELD[0], engine(1)], "Placing", ("False", "AdaptersLoading"), "1/2"),
        ([HELD[0], engine(1, {"a/1": Tier.HOST})], "Placing", ("False", "AdaptersLoading"), "1/2"),
        ([HELD[0], engine(1, {"a/1": Tier.DEVICE}, alive=False)], "Placing", ("False", "EnginesStarting"), "1/2"),
        ([HELD[0], engine(1, {"a/1": Tier.DEVICE}, ready=False)], "Placing", ("False", "BaseLoading"), "1/2"),
        ([HELD[0], engine(1, failures={"a/1": TERMINAL})], "Failed", ("False", "RankTooLarge"), "1/2"),
        ([HELD[0], engine(1, failures={"a/1": RETRYABLE})], "Degraded", ("False", "SourceUnavailable"), "1/2"),
        (
            [engine(0, failures={"a/0": RETRYABLE}), engine(1, failures={"a/1": TERMINAL})],
            "Failed",
            ("False", "RankTooLarge"),
            "0/2",
        ),
        (
            [HELD[0], engine(1, {"a/1": Tier.DEVICE}, failures={"a/1": TERMINAL})],
            "Failed",
            ("False", "RankTooLarge"),
            "1/2",
        ),
        ([engine(0, ready=False, failure=NO_SOURCE)] * 1, "Placing", ("False", "SourceNotFound"), "0/2"),
    ],
)
def test_waves(engines: list[EngineView], phase: str, verdict: tuple[str, str], summary: str) -> None:
    status = wave_after(engines)
    assert (status.phase, ready(status.conditions), status.summary) == (phase, verdict, summary)
    assert stalled(status) == {"Failed": verdict[1]}.get(phase, ""), "by which GitOps tools judge"
    assert ready(status.conditions, "Admitted")[0] == "True"
    assert ready(status.conditions, "Placed")[0] == "True"


def test_an_adapter_from_another_source_is_not_ready_however_warm() -> None:
    old = Held("a/1", Source(uri="pvc://samples/elsewhere"), Tier.DEVICE)
    other = msgspec.structs.replace(engine(1), held={"a/1": old})
    assert wave_after([HELD[0], other]).summary == "1/2"


def test_warmer_than_wanted_is_ready() -> None:
    cold = wave("w", ["a/0", "a/1"], residency="Disk")
    status = wave_after([engine(0, {"a/0": Tier.DISK}), engine(1, {"a/1": Tier.HOST})], of=cold)
    assert status.phase == "Ready"
    assert (status.counts.disk, status.counts.host, status.counts.device) == (1, 1, 0)


def test_a_wave_that_was_ready_is_degraded_while_an_engine_is_away() -> None:
    before = AdapterWaveStatus(phase="Ready", observed_generation=1)
    of = wave("w", ["a/0", "a/1"], status=before)
    assert wave_after([HELD[0], engine(1, alive=False)], of=of).phase == "Degraded"


@pytest.mark.parametrize(
    ("pods", "told"),
    [
        ([], ("EnginesStarting", "starting")),
        ([EnginePod(name="smol-1")], ("EnginesStarting", "starting")),
        ([EnginePod(name="smol-1", ready=True)], ("EnginesAway", "away")),
        ([EnginePod(name="smol-1", terminating=True)], ("EnginesAway", "away")),
        ([EnginePod(name="smol-1", trouble=PULLING)], ("EnginesAway", "away")),
    ],
)
def test_a_wave_tells_an_engine_that_starts_from_one_that_does_not_answer(
    pods: list[EnginePod], told: tuple[str, str]
) -> None:
    of = base(1, 2), [wave("w", ["a/0"], replicas=2)], [engine(0, {"a/0": Tier.DEVICE})]
    planned = with_pods(snapshot(*of, placed(plan(snapshot(*of)))), *pods)
    status = plan(planned).wave_statuses["team/w"]
    found = next(each for each in status.conditions if each.type == "Ready")
    assert (found.reason, found.message) == (told[0], f"1 of 2 copies ready; {told[1]}: smol-1")


@pytest.mark.parametrize(("pending", "reason"), [(True, "EnginesStarting"), (False, "EnginesAway")])
def test_an_engine_that_had_reported_is_starting_only_until_its_containers_are(*, pending: bool, reason: str) -> None:
    """A pod on a dead node is not ready any more, and has no trouble: its phase stays Running."""
    views = [engine(0, {"a/0": Tier.DEVICE}), engine(1, alive=False)]
    of = base(1, 2), [wave("w", ["a/0"], replicas=2)], views
    planned = with_pods(snapshot(*of, placed(plan(snapshot(*of)))), EnginePod(name="smol-1", pending=pending))
    assert ready(plan(planned).wave_statuses["team/w"].conditions) == ("False", reason)


def test_a_wave_says_at_once_when_an_engine_that_started_does_not() -> None:
    of = snapshot(base(1, 2), [wave("w", ["a/0"], replicas=2)], [engine(0, {"a/0": Tier.DEVICE})])
    first = plan(with_pods(of, EnginePod(name="smol-1")))
    later = plan(with_pods(of, EnginePod(name="smol-1", trouble=PULLING)), first.known)
    assert ready(first.wave_statuses["team/w"].conditions) == ("False", "EnginesStarting")
    assert ready(later.wave_statuses["team/w"].conditions) == ("False", "EnginesAway")


def test_slots_are_used_as_soon_as_copies_are_reported_in_them() -> None:
    assert base_after([engine(0, {"a/0": Tier.DEVICE, "a/1": Tier.DEVICE}), engine(1)], []).slots.used == 2


def test_slots_are_used_of_those_that_are_counted() -> None:
    """What an engine that drains still reports to hold is in slots that the base cannot use."""
    held = {f"a/{number}": Tier.DEVICE for number in range(8)}
    slots = base_after([engine(0, held), engine(1, held, ready=False)], []).slots
    assert (slots.used, slots.total) == (8, 8)


def test_a_wave_is_as_ready_as_it_asked_for_even_if_another_wants_more_copies() -> None:
    waves = [wave("one", ["a/0"]), wave("two", ["a/0"], replicas=2)]
    of = snapshot(base(2, 2), waves, [engine(0, {"a/0": Tier.DEVICE}), engine(1)])
    found = plan(of).wave_statuses
    assert (found["team/one"].summary, found["team/one"].phase) == ("1/1", "Ready")
    assert (found["team/two"].summary, found["team/two"].phase) == ("1/2", "Placing")


def test_failures_are_listed_up_to_ten() -> None:
    names = [f"a/{index:02}" for index in range(14)]
    failing = engine(0, failures=dict.fromkeys(names, TERMINAL))
    status = plan(snapshot(base(slots=14), [wave("w", names)], [failing])).wave_statuses["team/w"]
    assert (status.counts.failed, len(status.failures)) == (14, 10)
    assert ready(status.conditions, "Progressing")[0] == "False"


POD = EnginePod(name="smol-0", ip="10.0.0.0", ready=True)


@pytest.mark.parametrize(
    ("engines", "pods", "low", "phase", "verdict"),
    [
        ([], [], 1, "Pending", ("False", "EnginesStarting")),
        ([], [EnginePod(name="smol-0", trouble=PULLING)], 1, "Pending", ("False", "ImagePullBackOff")),
        ([], [EnginePod(name="smol-0", trouble=UNSCHEDULABLE)], 1, "Pending", ("False", "Unschedulable")),
        ([engine(0, ready=False)], [], 1, "Loading", ("False", "BaseLoading")),
        ([engine(0, ready=False, failure=RETRYABLE)], [], 1, "Loading", ("False", "SourceUnavailable")),
        ([engine(0, ready=False, failure=CORRUPT)], [], 1, "Loading", ("False", "CorruptFile")),
        ([engine(each, ready=False, failure=CORRUPT) for each in (0, 1)], [], 1, "Failed", ("False", "CorruptFile")),
        ([engine(0)], [], 1, "Ready", ("True", "EnginesReady")),
        ([engine(0)], [], 2, "Degraded", ("False", "EnginesStarting")),
        ([engine(0)], [EnginePod(name="smol-1", trouble=PULLING)], 2, "Degraded", ("False", "ImagePullBackOff")),
        ([engine(0), engine(1)], [], 2, "Ready", ("True", "EnginesReady")),
    ],
)
def test_bases(
    engines: list[EngineView], pods: list[EnginePod], low: int, phase: str, verdict: tuple[str, str]
) -> None:
    status = base_after(engines, pods, low)
    assert (status.phase, ready(status.conditions)) == (phase, verdict)
    assert stalled(status) == {"Failed": verdict[1]}.get(phase, ""), "by which GitOps tools judge"
    assert status.engines.desired == 2
    assert status.engines.selector == "app.kubernetes.io/name=mint-engine,mint.dev/base-model=smol"


def test_a_failure_that_several_engines_have_is_told_once() -> None:
    of = snapshot(base(8, 8), [wave("w", ["a/0"], replicas=8)])
    pods = [EnginePod(name=f"smol-{n}", trouble=UNSCHEDULABLE if n else PULLING) for n in range(8)]
    found = next(each for each in plan(with_pods(of, *pods)).base_statuses[KEY].conditions if each.type == "Ready")
    assert found.message == (
        "0 of 8 engines ready, 8 needed; smol-0: ImagePullBackOff: no such image; "
        f"smol-1, smol-2, smol-3, smol-4, smol-5 and 2 more: Unschedulable: {UNSCHEDULABLE.message}"
    )


def test_a_running_engine_that_cannot_reach_redis_says_where_to_look() -> None:
    status = base_after([], [POD, EnginePod(name="smol-1")], 1)
    found = next(each for each in status.conditions if each.type == "Ready")
    assert (found.status, found.reason) == ("False", "EnginesStarting")
    assert found.message == (
        "0 of 2 engines ready, 1 needed; engine smol-0: its pod is ready, but nothing is heard of it through Redis; "
        "its log says why"
    )


def test_a_base_that_served_and_lost_its_engines_is_degraded() -> None:
    status = base_after([engine(0, alive=False)], [], status=BaseModelStatus(phase="Ready"))
    assert (status.phase, status.engines.ready) == ("Degraded", 0)


@pytest.mark.parametrize(
    ("pod", "counts"),
    [
        (POD, 1),
        (EnginePod(name="smol-0", ip="10.0.0.99", ready=True), 0),  # a successor of the same name
        (EnginePod(name="smol-0"), 0),  # a successor without an address yet
        (EnginePod(name="smol-0", ip="10.0.0.0", ready=True, terminating=True), 0),
    ],
)
def test_the_heartbeat_of_a_pod_that_was_replaced_does_not_count(pod: EnginePod, counts: int) -> None:
    assert base_after([engine(0)], [pod]).engines.ready == counts


def test_without_redis_readiness_is_unknown_and_pods_are_what_is_seen() -> None:
    counted = BaseModelStatus(
        phase="Ready",
        slots=SlotCounts(used=1, total=4),
        adapters=TierCounts(device=1),
        loading=LoadingStatus(copies=2),
    )
    served = base(status=counted)
    last = AdapterWaveStatus(phase="Ready", counts=WaveCounts(adapters=1, wanted=1, ready=1), summary="1/1")
    of = with_pods(snapshot(served, [wave("w", ["a/0"], status=last)], redis_ok=False), POD)
    found = plan(of)
    assert ready(found.base_statuses[KEY].conditions) == ("Unknown", "MapUnavailable")
    assert (found.base_statuses[KEY].phase, found.base_statuses[KEY].engines.ready) == ("Degraded", 1)
    base_status = found.base_statuses[KEY]
    expected = counted.slots, counted.adapters, counted.loading
    assert (base_status.slots, base_status.adapters, base_status.loading) == expected
    status = found.wave_statuses["team/w"]
    assert ready(status.conditions) == ("Unknown", "MapUnavailable")
    assert (status.phase, status.summary, status.counts.ready) == ("Degraded", "1/1", 1)


def test_an_unusable_source_is_the_bases_reason_and_makes_no_engines() -> None:
    found = plan(snapshot(base(uri="ftp://host/model"), [wave("w", ["a/0"])]))
    assert ready(found.base_statuses[KEY].conditions, "SourceReady") == ("False", "SourceForbidden")
    assert (found.base_statuses[KEY].phase, found.manifests) == ("Failed", ())


def test_a_spec_that_cannot_be_read_is_told_and_leaves_engines_alone() -> None:
    broken = msgspec.structs.replace(base(), defect="spec.adapters.hostMemory 'much' is not a valid quantity")
    found = plan(snapshot(broken))
    assert ready(found.base_statuses[KEY].conditions) == ("False", "InvalidRequest")
    assert found.manifests == ()


def test_a_spec_that_cannot_be_read_takes_nothing_away() -> None:
    last = AdapterWaveStatus(phase="Ready", counts=WaveCounts(adapters=1, wanted=1, ready=1), summary="1/1")
    of = snapshot(base(), [wave("w", ["a/0"])], engines=[engine(0)])
    state = written(of.maps[KEY].state, plan(of).changes[KEY])
    assert list(state.placements) == ["a/0"]
    broken = msgspec.structs.replace(base(), defect="spec.engine.device: no such device")
    later = snapshot(broken, [wave("w", ["a/0"], status=last)], [engine(0, {"a/0": Tier.DEVICE})], state=state)
    found = plan(later)
    assert (found.changes, found.training, found.manifests) == ({}, {}, ())
    assert ready(found.base_statuses[KEY].conditions) == ("True", "InvalidRequest"), "engines answer as they did"
    status = found.wave_statuses["team/w"]
    assert ready(status.conditions) == ("Unknown", "InvalidRequest")
    assert (status.phase, status.counts, status.summary) == ("Degraded", last.counts, "1/1")
    assert stalled(status) == stalled(found.base_statuses[KEY]) == "InvalidRequest"
    mended = plan(msgspec.structs.replace(later, bases={KEY: base()}), found.known)
    assert mended.wave_statuses["team/w"].phase == "Ready"
    assert stalled(mended.wave_statuses["team/w"]) == ""


@pytest.mark.parametrize("changed", [{"defect": "spec.engine.device: no such device"}, {"uri": "ftp://host/smol"}])
def test_engines_of_a_spec_that_cannot_be_used_keep_the_secret_by_which_they_reach_redis(
    changed: Mapping[str, str],
) -> None:
    of = base(uri=changed["uri"]) if "uri" in changed else msgspec.structs.replace(base(), **changed)
    other = msgspec.structs.replace(of.meta, name="other", uid="uid-other")
    bases = {KEY: of, "team/other": msgspec.structs.replace(base(), meta=other)}
    engines = Child("StatefulSet", "team", "smol", applied="by an older plan", replicas=1)
    release = msgspec.structs.replace(RELEASE, redis_password="hush", redis_digest="1")
    there = msgspec.structs.replace(snapshot(of), release=release, children={engines.key: engines})
    [alone] = [each for each in plan(there).manifests if each.kind == "Secret"]
    assert owners(alone) == ["uid-base"]
    beside = plan(msgspec.structs.replace(there, bases=bases))
    [shared] = [each for each in beside.manifests if each.kind == "Secret"]
    assert owners(shared) == ["uid-other", "uid-base"], "it does not go with the other base"


def test_a_refused_object_is_told_without_hiding_that_engines_serve() -> None:
    failing = Failure("ApplyFailed", "spec.template: Invalid value", terminal=True)
    of = msgspec.structs.replace(snapshot(base(), engines=[engine(0)]), apply_failures={KEY: failing})
    status = plan(of).base_statuses[KEY]
    assert (status.phase, ready(status.conditions)) == ("Degraded", ("True", "ApplyFailed"))
    assert stalled(status) == "ApplyFailed", "who judges whether a change was carried out must not take it for that"
    assert reconciling(status) == ""
    assert ready(status.conditions, "EnginesReady") == ("False", "ApplyFailed")
    none = plan(msgspec.structs.replace(of, maps=snapshot(base()).maps)).base_statuses[KEY]
    assert (none.phase, ready(none.conditions)) == ("Failed", ("False", "ApplyFailed"))


def test_slots_and_tiers_are_counted_as_engines_report_them() -> None:
    held = [engine(0, {"a/0": Tier.DEVICE, "a/1": Tier.HOST}), engine(1, {"a/2": Tier.DISK})]
    status = plan(snapshot(base(2, 2), engines=held)).base_statuses[KEY]
    assert status.slots.total == 16
    assert (status.adapters.device, status.adapters.host, status.adapters.disk) == (1, 1, 1)


def test_a_transition_time_moves_only_with_the_status() -> None:
    [first] = follow([], [Finding("Ready", "False", "Loading", "1 of 2")], 1, NOW)
    [second] = follow([first], [Finding("Ready", "False", "Away", "0 of 2")], 2, NOW + 60)
    assert (second.last_transition_time, second.reason, second.observed_generation) == (
        first.last_transition_time,
        "Away",
        2,
    )
    [third] = follow([second], [Finding("Ready", "True", "AllReady", "2 of 2")], 2, NOW + 120)
    assert third.last_transition_time == "2027-01-15T08:02:00Z"


def _status(**changes: Any) -> AdapterWaveStatus:
    condition = Condition("Ready", "False", "AdaptersLoading", "1 of 2", "2027-01-15T08:00:00Z", 1)
    status = AdapterWaveStatus(phase="Placing", observed_generation=1, conditions=[condition])
    return msgspec.structs.replace(status, **changes)


@pytest.mark.parametrize(
    ("changes", "since_s", "owed_in"),
    [
        ({}, 100.0, None),
        ({"counts": WaveCounts(ready=1)}, 1.0, 4.0),
        ({"counts": WaveCounts(ready=1)}, 6.0, 0.0),
        ({"phase": "Ready"}, 0.0, 0.0),
        ({"observed_generation": 2}, 0.0, 0.0),
        ({"conditions": []}, 0.0, 0.0),
    ],
)
def test_counts_are_written_at_a_pace_and_the_picture_at_once(
    changes: Mapping[str, Any], since_s: float, owed_in: float | None
) -> None:
    assert status_write.owed_in(_status(), _status(**changes), since_s) == owed_in


def test_a_written_status_names_every_field_also_the_zeros() -> None:
    body = status_write.body(AdapterWaveStatus())
    assert body["counts"] == dict.fromkeys(
        ["adapters", "wanted", "placed", "ready", "device", "host", "disk", "failed"], 0
    )
    assert (body["observedGeneration"], body["failures"], body["summary"]) == (0, [], "")


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("Placing", "Ready", "Normal"),
        ("Placing", "Failed", "Warning"),
        ("Ready", "Degraded", "Warning"),
        ("Ready", "Pending", "Warning"),  # another wave took its place
    ],
)
def test_one_event_for_each_transition(old: str, new: str, kind: str) -> None:
    of: ObservedWave = wave("w", ["a/0"])
    event = transition("AdapterWave", of.meta, _status(phase=old), _status(phase=new), NOW)
    assert event is not None
    assert (event["type"], event["involvedObject"]["name"]) == (kind, "w")
    assert transition("AdapterWave", of.meta, _status(phase=new), _status(phase=new), NOW) is None


def test_a_wave_that_begins_to_load_is_no_event() -> None:
    assert (
        transition("AdapterWave", wave("w", ["a/0"]).meta, _status(phase=""), _status(phase="Pending"), NOW) is None
    )


def test_a_place_that_no_wave_asks_for_any_more_is_taken_back() -> None:
    stale = {"z/0": Placement("z/0", source("z/0"), ("team/gone",), (Place("smol-0", Tier.DEVICE, "once"),))}
    change = plan(snapshot(base(), placements=stale)).changes[KEY]
    assert change.del_placements == ("z/0",)
