"""The machinery of the benchmarks: rows, statistics, workload, sides. Nothing here is timed."""

import argparse
import json
import re
import sys
from pathlib import Path

import pytest

from tests.bench.__main__ import FAMILIES
from tests.bench.bench import take_turns
from tests.bench.parts import parts_of
from tests.bench.picture import beyond_goal, picture
from tests.bench.promises import BY_METRIC, PROMISES, SCALE, Promise
from tests.bench.results import read, write
from tests.bench.rows import measured, percentile, unmeasured
from tests.bench.scale import families as scale_families
from tests.bench.side import Side, SideFailed
from tests.bench.table import table
from tests.bench.timing import Round
from tests.bench.workload import FIRST_TOKEN_ID, Work, draw

FIELDS = {"metric", "unit", "ours", "theirs", "peer", "ratio", "goal", "holds", "note"}
REPOSITORY = Path(__file__).parents[2]


def test_every_promise_is_measured_by_exactly_one_family() -> None:
    told = [metric for groups in FAMILIES.values() for group in groups for metric in group.metrics]
    scale = [metric for groups in scale_families.FAMILIES.values() for group in groups for metric in group.metrics]
    assert sorted(told) == sorted(promise.metric for promise in PROMISES)
    assert sorted(scale) == sorted(promise.metric for promise in SCALE)
    assert len(BY_METRIC) == len(told) + len(scale)


def test_written_rows_keep_their_contract(tmp_path: Path) -> None:
    rows = [measured("serve.base_over_vllm_cpu", [110.0], [100.0]), unmeasured("ttft.cold_over_warm", "no peer")]
    write("serve", "title", rows, tmp_path)
    document = json.loads((tmp_path / "serve.json").read_text())
    assert [set(row) for row in document] == [FIELDS, FIELDS]
    assert document[1]["theirs"] is None
    assert document[1]["ratio"] is None
    assert document[1]["holds"] is False
    assert all(re.fullmatch(r"[<>]= [\d.]+", row["goal"]) for row in document)
    assert read("serve", tmp_path) == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["serve.json", "serve.svg"]


def test_a_new_measurement_replaces_only_its_own_row(tmp_path: Path) -> None:
    base, mixed = "serve.base_over_vllm_cpu", "serve.mixed64_r8_over_base"
    write("serve", "title", [measured(mixed, [90.0], [100.0])], tmp_path)
    write("serve", "title", [measured(base, [110.0], [100.0])], tmp_path)
    assert [(row.metric, row.ours) for row in read("serve", tmp_path)] == [(base, 110.0), (mixed, 90.0)]
    write("serve", "title", [measured(mixed, [95.0], [100.0])], tmp_path)
    assert [(row.metric, row.ours) for row in read("serve", tmp_path)] == [(base, 110.0), (mixed, 95.0)]
    drawn = (tmp_path / "serve.svg").read_text()
    assert base in drawn
    assert mixed in drawn


def test_unreadable_rows_do_not_hide_new_ones(tmp_path: Path) -> None:
    (tmp_path / "serve.json").write_text('[{"metric": "of another time"}]')
    rows = [measured("serve.base_over_vllm_cpu", [110.0], [100.0])]
    write("serve", "title", rows, tmp_path)
    assert read("serve", tmp_path) == rows


def test_a_part_is_a_family_or_a_metric_that_the_program_measures() -> None:
    bench, scale = parts_of(FAMILIES), parts_of(scale_families.FAMILIES)
    assert bench("serve, load.packed_over_memcpy.r32") == ("serve", "load.packed_over_memcpy.r32")
    assert scale("catalog") == ("catalog",)
    refusals = [
        (bench, "load scale.plan_64k_s", "^scale.plan_64k_s is measured by `make bench-scale`; name families"),
        (scale, "ttft.cold_over_warm", "^ttft.cold_over_warm is measured by `make bench`"),
        (bench, "serve.none", "^serve.none is neither a family nor a metric"),
        (bench, " , ", "^names nothing"),
    ]
    for read_parts, text, told in refusals:
        with pytest.raises(argparse.ArgumentTypeError, match=told):
            read_parts(text)


def test_a_row_tells_the_medians_and_their_ratio() -> None:
    row = measured("serve.base_over_vllm_cpu", [120.0, 90.0, 130.0], [100.0, 50.0, 500.0])
    assert (row.ours, row.theirs, row.ratio) == (120.0, 100.0, 1.2)
    assert row.holds


@pytest.mark.parametrize(
    ("metric", "ours", "theirs", "ratio", "holds"),
    [
        ("serve.mixed64_r8_over_base", 92.0, 100.0, 0.92, False),
        ("serve.mixed64_r8_over_base", 93.0, 100.0, 0.93, True),
        ("load.packed_over_memcpy.r32", 2.0, 1.0, 2.0, True),
        ("load.packed_over_memcpy.r32", 2.1, 1.0, 2.1, False),
        ("load.packed_over_unpacked_moe", 5.0, 500.0, 100.0, True),  # a speed-up: theirs over ours
        ("load.packed_over_unpacked_moe", 5.0, 400.0, 80.0, False),
    ],
)
def test_a_promise_holds_from_its_bound_on(
    metric: str, ours: float, theirs: float, ratio: float, holds: bool
) -> None:
    row = measured(metric, [ours], [theirs])
    assert row.ratio == pytest.approx(ratio)
    assert row.holds is holds


def test_a_promise_without_a_peer_bounds_the_figure_itself() -> None:
    promise = Promise("scale.bytes", "B", "none", "ours", "<=", 250.0)
    assert promise.goal == "<= 250"
    assert promise.ratio(249.0, 0.0) == 249.0
    assert promise.holds(promise.ratio(250.0, 0.0))
    assert not promise.holds(promise.ratio(251.0, 0.0))


def test_a_percentile_is_a_value_that_was_seen() -> None:
    assert percentile([5.0, 1.0, 3.0, 2.0, 4.0], 50) == 3.0
    assert percentile([float(value) for value in range(1, 101)], 95) == 95.0
    assert percentile([7.0], 95) == 7.0
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 95)


def test_a_round_tells_rate_first_tokens_and_gaps() -> None:
    round_ = Round()
    round_.add(10.0, [10.5, 10.6, 10.8])
    round_.add(10.1, [10.4, 12.0])
    told = round_.told()
    assert told["tokens"] == 5
    assert told["rate"] == pytest.approx(2.5)
    assert told["first"] == pytest.approx([0.5, 0.3])
    assert told["gaps"] == pytest.approx([0.1, 0.2, 1.6])


def test_sides_take_turns() -> None:
    order: list[str] = []

    def side(name: str) -> int:
        order.append(name)
        return len(order)

    found = take_turns(2, {"a": lambda _: side("a"), "b": lambda _: side("b")})
    assert order == ["a", "b", "a", "b"]
    assert found == {"a": [1, 3], "b": [2, 4]}


def test_the_workload_is_the_same_every_time_and_another_for_another_seed() -> None:
    work = Work(seed=1, vocabulary=1000, requests=4, prompt_tokens=64, adapters=("a", "b"))
    prompts = work.prompts()
    assert prompts == Work(seed=1, vocabulary=1000, requests=4, prompt_tokens=64).prompts()
    assert prompts[0][:6] == [220, 862, 787, 329, 545, 504]  # the same on every machine
    assert not {tuple(each) for each in prompts} & {tuple(each) for each in Work(seed=2, vocabulary=1000).prompts()}
    assert all(FIRST_TOKEN_ID <= token < 1000 and len(each) == 64 for each in prompts for token in each)
    assert [work.adapter(index) for index in range(4)] == ["a", "b", "a", "b"]
    assert Work(seed=1, vocabulary=1000).adapter(3) == ""
    assert draw(3, ["a", "b", "c"], 20) == draw(3, ["a", "b", "c"], 20)
    assert set(draw(3, ["a", "b", "c"], 20)) == {"a", "b", "c"}


def test_the_table_has_a_line_a_row_and_says_what_is_missing() -> None:
    kept, lost = (
        measured("serve.base_over_vllm_cpu", [1200.0], [1000.0]),
        unmeasured("ttft.cold_over_warm", "no peer"),
    )
    lines = table([kept, lost]).splitlines()
    assert lines[2].split()[:7] == ["serve.base_over_vllm_cpu", "1,200", "1,000", "tok/s", "1.2x", ">=", "1.1x"]
    assert "not measured" in lines[3]
    assert lines[-1].endswith("no peer")


def test_a_picture_shows_every_row() -> None:
    rows = [unmeasured(promise.metric, "x") for promise in PROMISES]
    drawn = picture("A & B", rows)
    assert "A &amp; B" in drawn
    assert all(promise.metric in drawn for promise in PROMISES)


def test_a_bar_tells_how_far_beyond_the_goal_a_ratio_is() -> None:
    assert beyond_goal(measured("load.packed_over_memcpy.r32", [1.0], [1.0])) == pytest.approx(2.0)
    assert beyond_goal(measured("load.packed_over_unpacked.r32", [1.0], [10.0])) == pytest.approx(0.5)
    assert beyond_goal(unmeasured("ttft.cold_over_warm", "x")) is None


ECHO = """
from tests.bench.protocol import serve
def echo(**told): print("chatter"); return told
def refuse(): raise ValueError("no such thing")
serve({"echo": echo, "refuse": refuse, "leave": lambda: __import__("os")._exit(3)})
"""


def echo_side(tmp_path: Path) -> Side:
    return Side("echo", [sys.executable, "-c", ECHO], tmp_path / "echo.log", {"PYTHONPATH": str(REPOSITORY)})


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_side_answers_and_is_stopped_between_questions(tmp_path: Path) -> None:
    with echo_side(tmp_path) as side:
        assert side.ask("echo", 30, a=1) == {"a": 1}
        assert state(side.pid) == "T"
        assert side.ask("echo", 30, a=2) == {"a": 2}
    assert not Path(f"/proc/{side.pid}").exists()
    assert "chatter" in (tmp_path / "echo.log").read_text()


def test_a_side_that_refuses_or_does_not_answer_is_reported(tmp_path: Path) -> None:
    with echo_side(tmp_path) as side:
        with pytest.raises(SideFailed, match="echo: refuse: ValueError: no such thing"):
            side.ask("refuse", 30)
        assert side.ask("echo", 30, a=1) == {"a": 1}
        with pytest.raises(SideFailed, match="ended without an answer"):
            side.ask("leave", 30)
