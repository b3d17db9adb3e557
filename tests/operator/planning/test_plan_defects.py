"""If planning one base hits a defect of ours, the other bases are still planned, and it keeps what it has."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from mint_contracts.map_reader import MapReader
from mint_contracts.records import EngineView, MapState
from mint_contracts.resources import BaseModelStatus
from mint_operator.planning import defects
from mint_operator.planning import plan as planning
from mint_operator.planning.base_plan import plan_base
from mint_operator.planning.plan import plan
from mint_operator.planning.snapshot import BaseMap, ObservedBase, Snapshot
from tests.operator.stage import ADAPTERS, Stage, adapter_wave, base_model
from tests.operator.unread_worlds import condition
from tests.operator.worlds import KEY, NOW, RELEASE, base, engine, wave

OTHER = "team/other"

Break = Callable[[str], list[bool]]


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Make planning a base raise; the returned list records, per try, whether it planned from scratch."""

    def broken(name: str) -> list[bool]:
        tries: list[bool] = []

        def planned(snapshot: Snapshot, of: ObservedBase, *rest: Any) -> Any:
            if of.meta.name != name:
                return plan_base(snapshot, of, *rest)
            tries.append(rest[-1] is None)
            raise ZeroDivisionError("nobody thought of this")

        monkeypatch.setattr(planning, "plan_base", planned)
        return tries

    return broken


def two(now: float = NOW, status: BaseModelStatus | None = None) -> Snapshot:
    """Return a snapshot of two bases, each with an engine and a wave."""
    first = base(status=status)
    second = msgspec.structs.replace(first, meta=msgspec.structs.replace(first.meta, name="other", uid="uid-other"))
    ours, theirs = engine(0), engine(0)
    assert theirs.record is not None
    theirs = EngineView("other-0", msgspec.structs.replace(theirs.record, engine="other-0"), {})
    maps = {key: BaseMap(MapState(1, None, {}, {}), (view,)) for key, view in ((KEY, ours), (OTHER, theirs))}
    waves = (wave("one", ["a"]), wave("two", ["b"], base_name="other"))
    return Snapshot(now, RELEASE, {KEY: first, OTHER: second}, waves, maps=maps)


def test_the_other_bases_are_planned_for(breaks: Break) -> None:
    whole = plan(two())
    breaks("smol")
    found = plan(two())
    assert found.changes == {OTHER: whole.changes[OTHER]}
    assert found.base_statuses[OTHER] == whole.base_statuses[OTHER]
    assert found.wave_statuses["team/two"] == whole.wave_statuses["team/two"]
    assert {each.bases for each in found.manifests} == {(OTHER,)}, "and nothing of this one is touched"


def test_a_failed_base_and_its_waves_report_the_defect_and_claim_nothing(breaks: Break) -> None:
    breaks("smol")
    found = plan(two(status=BaseModelStatus(phase="Ready")))
    status = found.base_statuses[KEY]
    [ready] = [each for each in status.conditions if each.type == "Ready"]
    assert (status.phase, ready.status, ready.reason) == ("Degraded", "Unknown", "Internal")
    assert "ZeroDivisionError: nobody thought of this" in ready.message
    assert condition(found, "one") == ("Unknown", "Internal", ready.message)


def test_a_failed_base_is_planned_again_from_scratch_later(breaks: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan(two())
    tries = breaks("smol")
    second = plan(two(NOW + 1), first.known)
    assert second.due == NOW + 1 + defects.AGAIN_S, "time alone brings it about"
    third = plan(two(NOW + 2), second.known, second.defects)
    assert tries == [False], "not with every pass, since a plan from nothing may take long"
    assert (third.defects, third.due) == (second.defects, second.due)
    fourth = plan(two(NOW + 1 + defects.AGAIN_S), third.known, third.defects)
    assert tries == [False, True]
    plan(two(NOW - 86_400.0), fourth.known, fourth.defects)
    assert tries == [False, True, True], "a clock that was put back does not put it off"
    monkeypatch.undo()
    fifth = plan(two(NOW + 3 * defects.AGAIN_S), fourth.known, fourth.defects)
    assert (set(fifth.changes), fifth.defects) == ({KEY, OTHER}, {})


async def test_a_pass_writes_what_the_other_bases_need(stage: Stage, breaks: Break) -> None:
    breaks("bad")
    bad = base_model() | {"metadata": {"name": "bad"}}
    await stage.reconcile(bad, base_model(), adapter_wave("demo", ADAPTERS))
    assert (await stage.condition("BaseModel", "bad"))["reason"] == "Internal"
    assert sorted(await MapReader(stage.redis).placements(stage.base)) == ADAPTERS
