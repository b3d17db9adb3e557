"""How long engines have been unready while others are ready, which bounds how long placements wait for them."""

from mint_contracts.records import EngineView
from mint_operator.observing.readiness import Readiness, watched
from tests.operator.training_worlds import restarted
from tests.operator.worlds import engine

FLEET = ["smol-0", "smol-1"]


class Watch:
    """Observes two engines at the times that a test gives."""

    def __init__(self) -> None:
        self.seen = Readiness()

    def look(self, now: float, *views: EngineView, telling: tuple[str, ...] = ()) -> dict[str, float]:
        """Observe the engines and return for how long each has counted as not ready."""
        self.seen = watched(self.seen, views, FLEET, telling, now)
        return self.seen.unready_s(now)


def loading(ordinal: int, incarnation: int = 1) -> EngineView:
    return restarted(engine(ordinal, ready=False), incarnation)


def test_time_away_counts_from_the_last_ready_report() -> None:
    watch = Watch()
    assert watch.look(100.0, engine(0), engine(1)) == {}
    assert watch.look(110.0, engine(0), engine(1, alive=False)) == {"smol-1": 0.0}
    assert watch.look(135.0, engine(0), loading(1, 2)) == {"smol-1": 25.0}
    assert watch.look(150.0, engine(0), engine(1, alive=False)) == {"smol-1": 40.0}
    assert watch.look(160.0, engine(0), restarted(engine(1), 3)) == {}
    assert watch.look(170.0, engine(0), loading(1, 4)) == {"smol-1": 0.0}


def test_an_operator_that_starts_anew_counts_from_its_first_look() -> None:
    watch = Watch()
    assert watch.look(5000.0, engine(0), loading(1)) == {"smol-1": 0.0}
    assert watch.look(5040.0, engine(0), loading(1)) == {"smol-1": 40.0}


def test_where_all_start_at_once_the_others_are_given_as_long_again_as_the_first_took() -> None:
    watch = Watch()
    watch.look(100.0, engine(0), engine(1))
    assert watch.look(110.0, loading(0, 2), loading(1, 2)) == {}
    assert watch.look(710.0, restarted(engine(0), 2), loading(1, 2)) == {}
    assert watch.look(1309.0, restarted(engine(0), 2), loading(1, 2)) == {}
    assert watch.look(1345.0, restarted(engine(0), 2), loading(1, 2)) == {"smol-1": 35.0}


def test_an_engine_that_became_ready_within_the_grace_has_used_it_up() -> None:
    watch = Watch()
    watch.look(100.0, loading(0), loading(1))
    watch.look(700.0, engine(0), loading(1))
    assert watch.look(720.0, engine(0), engine(1)) == {}
    assert watch.look(740.0, engine(0), loading(1, 2)) == {"smol-1": 0.0}
    assert watch.look(780.0, engine(0), loading(1, 2)) == {"smol-1": 40.0}


def test_an_engine_that_fails_within_the_grace_gets_the_rest_of_it() -> None:
    watch = Watch()
    watch.look(100.0, loading(0), loading(1))
    watch.look(700.0, engine(0), loading(1))
    watch.look(740.0, engine(0), engine(1, alive=False))
    assert watch.look(760.0, engine(0), loading(1, 2)) == {}
    assert watch.look(1330.0, engine(0), loading(1, 2)) == {"smol-1": 30.0}


def test_a_base_that_could_not_be_loaded_for_long_is_judged_by_the_start_that_could_load_it() -> None:
    watch = Watch()
    watch.look(100.0, loading(0), loading(1))
    watch.look(9000.0, loading(0, 2), loading(1, 2))
    watch.look(9060.0, restarted(engine(0), 2), loading(1, 2))
    assert watch.look(9160.0, restarted(engine(0), 2), loading(1, 2)) == {"smol-1": 40.0}


def test_time_does_not_count_while_an_engine_reports_to_a_lost_map() -> None:
    watch = Watch()
    watch.look(100.0, engine(0), engine(1))
    watch.look(110.0, engine(0), telling=("smol-1",))
    assert watch.look(150.0, engine(0), telling=("smol-1",)) == {}


def test_engines_lost_with_the_map_are_awaited_from_the_first_return() -> None:
    watch = Watch()
    watch.look(100.0, engine(0), engine(1))
    watch.look(5000.0)
    assert watch.look(5001.0, engine(0)) == {"smol-1": 0.0}
