"""A policy's curve: every step's figures at first, then ever fewer of them, so that it stays small."""

import msgspec

from mint_contracts.step_figures import MOST_POINTS, Curve, StepFigures, figures_of_step, followed_by


def after(steps: int) -> list[int]:
    curve: Curve = ()
    for step in range(1, steps + 1):
        curve = followed_by(curve, StepFigures(step))
        assert len(curve) <= MOST_POINTS
    return [each.step for each in curve]


def test_a_curve_has_all_steps_of_a_short_course_and_evenly_spaced_ones_of_a_long_one() -> None:
    assert after(MOST_POINTS) == list(range(1, MOST_POINTS + 1))
    assert after(MOST_POINTS + 2) == list(range(2, MOST_POINTS + 3, 2))
    longest = (StepFigures(10**6, *[1.234e-05] * 5),) * MOST_POINTS
    assert len(msgspec.json.encode(longest)) < 5000, "as docs/training.md says"
    assert after(1001) == [*range(16, 1001, 16), 1001]


def test_a_step_that_is_taken_again_replaces_it_and_those_after_it() -> None:
    curve = (StepFigures(1, kl=0.1), StepFigures(2, kl=0.2), StepFigures(3, kl=0.3))
    assert followed_by(curve, StepFigures(2, kl=0.9)) == (curve[0], StepFigures(2, kl=0.9))


def test_figures_are_finite_or_missing() -> None:
    """JSON has no other numbers; and a report with one that is not equal to itself would be sent again forever."""
    known = {"kl": float("nan"), "grad_norm": float("inf"), "truncated": 0.5, "ratio": 1.0}
    assert figures_of_step(3, known) == StepFigures(3, truncated=0.5)
