"""When and where adapters move whose engine is away, or alive but not ready."""

from collections import Counter

import msgspec
import pytest

from mint_contracts.records import EngineView, Placement
from mint_operator.planning.engines import AWAY_GRACE_S, LOADING_GRACE_S
from mint_operator.planning.plan import plan
from mint_operator.planning.snapshot import EnginePod
from tests.operator.worlds import EMPTY, KEY, base, engine, homes, placed, snapshot, wave, written

SIX = [f"a/{letter}" for letter in "bcdefg"]


def away(seconds: float, engines: list[EngineView]) -> tuple[dict[str, Placement], dict[str, Placement]]:
    waves = [wave("one", SIX)]
    first = placed(plan(snapshot(base(2, 2), waves)))
    of = snapshot(base(2, 2), waves, engines, placements=first, away_s={"smol-1": seconds})
    return first, placed(plan(of), first)


def test_an_engine_keeps_its_adapters_while_it_is_away_for_less_than_the_grace() -> None:
    first, second = away(29.0, [engine(0), engine(1, alive=False)])
    assert second == first


@pytest.mark.parametrize("seconds", [1.0, 31.0])
def test_placements_on_an_absent_engine_leave_the_map_with_their_wave(seconds: float) -> None:
    fleet = [engine(0), engine(1, alive=False)]
    first = plan(snapshot(base(2, 2), [wave("one", SIX)])).changes[KEY]
    state = written(EMPTY, first)
    assert all(state.assigned[each.engine] for each in fleet)
    of = snapshot(base(2, 2), [], fleet, state=state, away_s={"smol-1": seconds})
    assert not any(written(state, plan(of).changes[KEY]).assigned.values())


def test_an_engine_that_is_away_for_longer_loses_them_to_others() -> None:
    first, second = away(31.0, [engine(0), engine(1, alive=False)])
    assert all(engines == ["smol-0"] for engines in homes(second).values())
    moved = [name for name in SIX if homes(first)[name] == ["smol-1"]]
    assert {second[name].places[0].why for name in moved} == {
        "moved from smol-1, which was away, or not ready, for too long"
    }


@pytest.mark.parametrize(
    ("alive", "away_s", "unready_s", "moves"),
    [
        (True, 0.0, LOADING_GRACE_S - 1, False),
        (True, 0.0, LOADING_GRACE_S + 1, True),
        (False, 3.0, LOADING_GRACE_S - 1, False),
        (False, 3.0, LOADING_GRACE_S + 1, True),
        (False, AWAY_GRACE_S + 1, AWAY_GRACE_S + 1, True),
    ],
    ids=["loads", "loads for long", "has failed again", "has failed again, and for long", "is away"],
)
def test_an_engine_that_reports_and_is_long_in_loading_its_base_loses_its_adapters_to_others(
    alive: bool, away_s: float, unready_s: float, moves: bool
) -> None:
    waves = [wave("one", SIX)]
    first = placed(plan(snapshot(base(2, 2), waves)))
    fleet, waited = [engine(0), engine(1, ready=False, alive=alive)], {"smol-1": unready_s}
    of = snapshot(base(2, 2), waves, fleet, first, unready_s=waited, away_s={} if alive else {"smol-1": away_s})
    second = placed(plan(of), first)
    if moves:
        assert all(engines == ["smol-0"] for engines in homes(second).values())
    else:
        assert second == first


@pytest.mark.parametrize(("away_s", "moves"), [(None, False), (20.0, False), (31.0, True)])
def test_the_grace_of_an_engine_that_drains_begins_when_it_has_ended(away_s: float | None, moves: bool) -> None:
    waves = [wave("one", SIX)]
    first = placed(plan(snapshot(base(2, 2), waves)))
    pods = [EnginePod(f"smol-{at}", ip=f"10.0.0.{at}", ready=not at, terminating=bool(at)) for at in range(2)]
    fleet = [engine(0), engine(1, ready=False, alive=away_s is None)]
    away, unready = {} if away_s is None else {"smol-1": away_s}, {"smol-1": 35.0 + (away_s or 0.0)}
    of = snapshot(base(2, 2), waves, fleet, first, away_s=away, unready_s=unready)
    second = placed(plan(msgspec.structs.replace(of, pods={KEY: tuple(pods)})), first)
    assert (second != first) is moves


def test_an_engine_that_is_long_in_loading_its_base_is_given_nothing_new_that_fits_elsewhere() -> None:
    fleet = [engine(0), engine(1, ready=False)]
    late = {"smol-1": LOADING_GRACE_S + 1}
    fits = placed(plan(snapshot(base(2, 2), [wave("one", SIX)], fleet, unready_s=late)))
    assert {engine for engines in homes(fits).values() for engine in engines} == {"smol-0"}
    many = placed(plan(snapshot(base(2, 2, slots=4), [wave("one", SIX)], fleet, unready_s=late)))
    assert Counter(engine for engines in homes(many).values() for engine in engines) == {"smol-0": 4, "smol-1": 2}


def test_nothing_moves_while_no_engine_is_ready() -> None:
    first, second = away(300.0, [engine(0, ready=False), engine(1, alive=False)])
    assert second == first


def test_adapters_of_a_lost_engine_stay_if_they_fit_nowhere_else() -> None:
    waves = [wave("one", [f"a/{index}" for index in range(4)])]
    of = base(2, 2, slots=2)
    first = placed(plan(snapshot(of, waves)))
    lost = snapshot(of, waves, [engine(0), engine(1, alive=False)], placements=first, away_s={"smol-1": 60.0})
    assert placed(plan(lost), first) == first


@pytest.mark.parametrize(("slots", "where"), [(8, {"smol-2"}), (2, {"smol-1", "smol-2"})], ids=["room", "no room"])
def test_adapters_of_a_lost_engine_go_to_ready_ones_before_those_that_may_be_lost_next(
    slots: int, where: set[str]
) -> None:
    waves = [wave("one", SIX[: 3 * slots // 2])]
    first = placed(plan(snapshot(base(3, 3, slots), waves)))
    fleet = [engine(0, ready=False), engine(1, ready=False), engine(2)]
    waited = {"smol-0": LOADING_GRACE_S + 1, "smol-1": 5.0}
    second = placed(plan(snapshot(base(3, 3, slots), waves, fleet, first, unready_s=waited)), first)
    moved = {name for name, engines in homes(first).items() if engines == ["smol-0"]}
    assert moved
    assert {engine for name in moved for engine in homes(second)[name]} <= where
    assert {name: second[name] for name in SIX if name in second and name not in moved} == {
        name: first[name] for name in first if name not in moved
    }
