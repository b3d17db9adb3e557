"""A policy's curve: every step's figures at first, then ever fewer of them, so that it stays small."""

import msgspec

from mint_contracts.step_figures import MOST_POINTS, Curve, StepFigures, evaluated, figures_of_step, followed_by


def after(steps: int) -> list[int]:
    curve: Curve = ()
    for step in range(1, steps + 1):
        curve = followed_by(curve, StepFigures(step))
        assert len(curve) <= MOST_POINTS
    return [each.step for each in curve]


def test_a_curve_has_all_steps_of_a_short_course_and_evenly_spaced_ones_of_a_long_one() -> None:
    assert after(MOST_POINTS - 1) == list(range(1, MOST_POINTS))
    assert after(MOST_POINTS + 1) == [*range(2, MOST_POINTS + 1, 2), MOST_POINTS + 1]
    longest = (StepFigures(10**6, *[1.234e-05] * 7),) * MOST_POINTS
    assert len(msgspec.json.encode(longest)) < 6000, "as docs/training.md says"
    assert after(1001) == [*range(16, 1001, 16), 1001]


def test_a_step_that_is_taken_again_replaces_it_and_those_after_it() -> None:
    curve = (StepFigures(1, kl=0.1), StepFigures(2, kl=0.2), StepFigures(3, kl=0.3))
    assert followed_by(curve, StepFigures(2, kl=0.9)) == (curve[0], StepFigures(2, kl=0.9))


def test_an_evaluation_counts_until_the_next_so_that_no_kept_step_lacks_it() -> None:
    curve = evaluated((), 0, 0.25)
    for step in range(1, 6):
        curve = followed_by(curve, StepFigures(step, kl=0.5))
        curve = evaluated(curve, step, 0.75) if step == 3 else curve
    assert [each.evaluation for each in curve] == [0.25, 0.25, 0.25, 0.75, 0.75, 0.75]
    assert [each.step for each in curve] == [0, 1, 2, 3, 4, 5]
    assert curve[3].kl == 0.5
    again = followed_by(curve, StepFigures(2))
    assert again[-1] == StepFigures(2, evaluation=0.25), "not what was evaluated later in an earlier attempt"
    for step in range(6, 1000):
        curve = followed_by(curve, StepFigures(step))
        assert len(curve) <= MOST_POINTS
    assert curve[0] == StepFigures(0, evaluation=0.25)


def test_figures_are_finite_or_missing() -> None:
    """JSON has no other numbers; and a report with one that is not equal to itself would be sent again forever."""
    known = {"kl": float("nan"), "grad_norm": float("inf"), "truncated": 0.5, "ratio": 1.0}
    assert figures_of_step(3, known) == StepFigures(3, truncated=0.5)
