"""Logs: what programs say once, and what they do not say again and again."""

import json
import subprocess
import sys

import pytest
import structlog

from mint_contracts.logs import MOST_TROUBLES, REPEAT_S, Repeats


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def said(repeats: Repeats, method: str, **event: object) -> dict[str, object] | None:
    """The event as it is logged, None where it is dropped."""
    try:
        return dict(repeats(None, method, dict(event)))
    except structlog.DropEvent:
        return None


def test_a_trouble_is_said_once_and_again_after_a_while_with_the_number_between() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    assert said(repeats, "warning", event="redis is away", base="ns/a") == {"event": "redis is away", "base": "ns/a"}
    for _ in range(7):
        clock.now += 1.0
        assert said(repeats, "warning", event="redis is away", base="ns/a") is None
    clock.now = 1_000.0 + REPEAT_S
    again = said(repeats, "warning", event="redis is away", base="ns/a")
    assert again == {"event": "redis is away", "base": "ns/a", "repeats": 7}
    clock.now += REPEAT_S
    assert said(repeats, "warning", event="redis is away", base="ns/a") == {"event": "redis is away", "base": "ns/a"}


@pytest.mark.parametrize(
    "other",
    [
        {"event": "redis is away", "base": "ns/b"},
        {"event": "redis is back", "base": "ns/a"},
        {"event": "redis is away", "base": "ns/a", "error": "timeout"},
        {"event": "redis is away", "base": "ns/a", "exception": "Traceback ..."},
    ],
)
def test_what_differs_in_a_word_or_a_field_is_said(other: dict[str, object]) -> None:
    repeats = Repeats(Clock())
    assert said(repeats, "error", event="redis is away", base="ns/a")
    assert said(repeats, "error", **other) == other


def test_when_it_is_tried_again_makes_no_other_trouble_of_it() -> None:
    repeats = Repeats(Clock())
    assert said(repeats, "warning", event="redis is away", again_in_s=1.2)
    assert said(repeats, "warning", event="redis is away", again_in_s=2.3) is None


def test_news_are_never_dropped() -> None:
    repeats = Repeats(Clock())
    assert [said(repeats, "info", event="request") for _ in range(3)] == [{"event": "request"}] * 3


def test_few_troubles_are_remembered_the_newest() -> None:
    repeats = Repeats(Clock())
    for number in range(MOST_TROUBLES + 1):
        assert said(repeats, "warning", event="trouble", number=number)
    assert said(repeats, "warning", event="trouble", number=MOST_TROUBLES) is None
    assert said(repeats, "warning", event="trouble", number=0), "the oldest is forgotten, and said again"


def test_a_program_says_a_trouble_of_one_traceback_once() -> None:
    program = """
import structlog
from mint_contracts.logs import log_as_json

def fail(number):
    try:
        raise ValueError(f"no {number}")
    except ValueError:
        log.exception("it failed", base="ns/a")

log_as_json(engine="e-0")
log = structlog.get_logger("x")
for number in (1, 1, 2, 2, 1):
    fail(number)
    log.warning("slow", ms=5)
    log.info("done")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    assert [line["event"] for line in lines].count("done") == 5
    assert [line["event"] for line in lines].count("slow") == 1
    failed = [line for line in lines if line["event"] == "it failed"]
    assert [line["exception"].splitlines()[-1] for line in failed] == ["ValueError: no 1", "ValueError: no 2"]
    assert all(line["engine"] == "e-0" and "timestamp" in line for line in lines)
