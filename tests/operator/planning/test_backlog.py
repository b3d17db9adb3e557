"""How many copies are still to be loaded, and how long that takes, in the statuses of bases and waves."""

from collections.abc import Mapping, Sequence

import pytest

from mint_contracts.records import EngineView, Failure, Placement, Tier
from mint_contracts.resources import LoadingStatus
from mint_operator.planning.engines import AWAY_GRACE_S, LOADING_GRACE_S
from mint_operator.planning.plan import Plan, plan
from tests.operator.worlds import KEY, base, engine, homes, placed, snapshot, wave

NAMES = [f"a/{index}" for index in range(12)]
WAVES = [wave("one", NAMES[:8]), wave("two", NAMES[8:])]


def planned(engines: Sequence[EngineView], before: Mapping[str, Placement] | None = None, **away_s: float) -> Plan:
    away = {name.replace("_", "-"): seconds for name, seconds in away_s.items()}
    return plan(snapshot(base(2, 2, 12), WAVES, engines, before, away_s=away))


def test_a_base_is_there_when_its_slowest_engine_has_done_its_part() -> None:
    fleet = [engine(0, loads_per_s=2.0), engine(1, loads_per_s=0.5)]
    found = planned(fleet)
    assert found.base_statuses[KEY].loading == LoadingStatus(copies=12, eta_seconds=12, eta="12s")
    assert found.wave_statuses["team/one"].loading == LoadingStatus(copies=8, eta_seconds=12, eta="12s")
    assert found.wave_statuses["team/one"].eta == "12s"


def test_nothing_is_promised_before_an_engine_has_told_its_rate() -> None:
    found = planned([engine(0, loads_per_s=2.0), engine(1)])
    assert found.base_statuses[KEY].loading == LoadingStatus(copies=12)


def test_what_is_loaded_or_failed_is_not_waited_for() -> None:
    before = placed(planned([engine(0), engine(1)]))
    at = {name: int(engines[0][-1]) for name, engines in homes(before).items()}
    missing, broken = "a/1", "a/2"
    why = {broken: Failure("CorruptFile", "is cut off", terminal=True)}
    fleet = [
        engine(
            ordinal,
            {name: Tier.DEVICE for name in NAMES if at[name] == ordinal and name not in {missing, broken}},
            failures=why if at[broken] == ordinal else {},
            loads_per_s=0.25,
        )
        for ordinal in range(2)
    ]
    found = planned(fleet, before)
    assert found.base_statuses[KEY].loading == LoadingStatus(copies=1, eta_seconds=4, eta="4s")
    assert found.wave_statuses["team/two"].loading == LoadingStatus()


def test_after_a_death_the_time_to_recover_is_told_at_once_and_again_when_the_others_take_over() -> None:
    before = placed(planned([engine(0), engine(1)]))
    here = {name: Tier.DEVICE for name, engines in homes(before).items() if engines == ["smol-0"]}
    fleet = [engine(0, here, loads_per_s=2.0), engine(1, alive=False)]
    lost = len(NAMES) - len(here)
    loading = planned(fleet, before, smol_1=1.0).base_statuses[KEY].loading
    assert (loading.copies, loading.eta_seconds) == (lost, AWAY_GRACE_S - 1 + lost / 2)
    later = planned(fleet, before, smol_1=21.0).base_statuses[KEY].loading
    assert later.eta_seconds == AWAY_GRACE_S - 21.0 + lost / 2
    moved = planned(fleet, before, smol_1=AWAY_GRACE_S + 1)
    assert moved.base_statuses[KEY].loading == LoadingStatus(copies=6, eta_seconds=3, eta="3s")
    assert moved.wave_statuses["team/one"].loading.eta_seconds == 3


def test_an_engine_lost_while_loading_counts_from_the_end_of_its_grace() -> None:
    before = placed(planned([engine(0), engine(1)]))
    here = {name: Tier.DEVICE for name, engines in homes(before).items() if engines == ["smol-0"]}
    fleet, lost = [engine(0, here, loads_per_s=2.0), engine(1, alive=False)], len(NAMES) - len(here)
    waited = {"smol-1": LOADING_GRACE_S - 10}
    of = snapshot(base(2, 2, 12), WAVES, fleet, before, away_s={"smol-1": 3.0}, unready_s=waited)
    assert plan(of).base_statuses[KEY].loading.eta_seconds == 10 + lost / 2


@pytest.mark.parametrize("seconds", [1.0, AWAY_GRACE_S + 1], ids=["away", "lost"])
@pytest.mark.parametrize(("slots", "replicas"), [(12, 2), (6, 1)], ids=["all have one", "all are full"])
def test_nothing_is_promised_of_copies_that_wait_for_their_own_engine(
    seconds: float, slots: int, replicas: int
) -> None:
    waves = [wave("one", NAMES, replicas=replicas)]
    before = placed(plan(snapshot(base(2, 2, slots), waves)))
    here = {name: Tier.DEVICE for name, engines in homes(before).items() if "smol-0" in engines}
    fleet = [engine(0, here, loads_per_s=2.0), engine(1, alive=False)]
    of = snapshot(base(2, 2, slots), waves, fleet, before, away_s={"smol-1": seconds})
    loading = plan(of).wave_statuses["team/one"].loading
    assert loading.copies == (12 if replicas == 2 else 6)
    assert (loading.eta_seconds is None) is (replicas == 2 or seconds > AWAY_GRACE_S)
