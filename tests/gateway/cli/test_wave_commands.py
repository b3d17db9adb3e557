"""What `mint wave` shows of training waves: lines, tables, sparklines and pictures."""

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mint_contracts.durations import span
from mint_contracts.records import Failure
from mint_contracts.step_figures import StepFigures
from mint_contracts.training_pb2 import PolicyProgress, WaveProgress
from mint_contracts.training_pb2 import StepFigures as FiguresMessage
from mint_contracts.training_records import Stage
from mint_gateway.cli.wave import _lines, _live
from mint_gateway.cli.wave_plot import PANELS, plot, smoothed
from mint_gateway.cli.wave_tables import line, progress_table, sparkline
from tests.gateway.command import mint
from tests.gateway.scene import Scene
from tests.gateway.training_waves import NAMES, Training, reported, wave


async def test_piped_the_command_prints_a_line_an_update(scene: Scene, training: Training) -> None:
    await training.declare(wave("Failed", message="the loss is not a number"))
    why = Failure("NonFiniteWeights", "the loss is not a number", terminal=True)
    await training.report(reported(NAMES[0], 3, Stage.FAILED, failure=why, reward_recent=0.5, tokens=1200))
    code, out, err = await mint(scene.target, "wave", "watch", "-n", "demo", "w")
    assert (code, err) == (1, "")
    assert out == (
        "demo/w Failed 0/4, 2 policies, reward 0.500 (best -), 1,200 tokens: the loss is not a number\n"
        f"{NAMES[0]} Failed 3/4: NonFiniteWeights: the loss is not a number\n"
    )
    code, out, _ = await mint(scene.target, "wave", "watch", "demo/w", "--output", "json")
    assert json.loads(out)["policies"][0]["failure_reason"] == "NonFiniteWeights"


async def test_piped_it_tells_of_each_failure_once(capsys: pytest.CaptureFixture[str]) -> None:
    async def updates() -> AsyncIterator[WaveProgress]:
        for step in (1, 2):
            yield running(step)

    await _lines(updates())
    assert [row.partition(",")[0] for row in capsys.readouterr().out.splitlines()] == [
        "demo/w Training 1/4",
        "demo/w-1 Failed 0/4: BadReward: no [data]",
        "demo/w Training 2/4",
    ]


async def test_the_command_lists_waves(scene: Scene, training: Training) -> None:
    await training.declare(wave())
    code, out, _ = await mint(scene.target, "wave", "list")
    assert code == 0
    assert "demo/w" in out
    assert "Training" in out
    assert "0/4" in out


async def test_the_command_draws_a_picture(scene: Scene, training: Training, tmp_path: Path) -> None:
    await training.declare(wave())
    curve = (StepFigures(1, grad_norm=0.5), StepFigures(3, kl=0.0, grad_norm=0.25))
    await training.report(reported(NAMES[0], 3), rewards={NAMES[0]: [0.1, 0.5, 0.9]}, curves={NAMES[0]: curve})
    picture = tmp_path / "rewards.png"
    code, _, err = await mint(scene.target, "wave", "plot", "demo/w", "-o", str(picture))
    assert (code, err) == (0, f"{picture}: 2 policies, 3 steps\n")
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, _, _ = await mint(scene.target, "wave", "plot", "demo/w", "-o", str(tmp_path / "rewards.svg"))
    titles = [name for name, title in PANELS.items() if f"<!-- {title} -->" in (tmp_path / "rewards.svg").read_text()]
    assert (code, titles) == (0, ["grad_norm"]), "no panel for what no step tells or is 0 throughout"
    code, _, err = await mint(scene.target, "wave", "plot", "demo/w", "-o", str(tmp_path / "rewards.exe"))
    assert code == 1
    assert "cannot be drawn" in err
    code, _, err = await mint(scene.target, "wave", "plot", "demo/w", "-o", str(tmp_path / "none" / "rewards.png"))
    assert code == 1
    assert err.endswith("rewards.png: could not be written (No such file or directory)\n")
    assert "Traceback" not in err


def test_curves_are_smoothed_backwards() -> None:
    assert smoothed([1.0, 2.0, 3.0, 4.0], window=2) == [1.0, 1.5, 2.5, 3.5]


def test_a_picture_without_a_step_is_empty_not_an_error(tmp_path: Path) -> None:
    progress = WaveProgress(wave="demo/w", policies=[PolicyProgress(policy="demo/w-0", stage="Waiting")])
    assert plot(progress, tmp_path / "empty.svg") == 0
    progress.policies[0].curve.add(step=0, evaluation=0.25)
    assert plot(progress, tmp_path / "baseline.svg") == 0


def test_a_picture_begins_at_the_first_step_whatever_is_known_of_the_last(tmp_path: Path) -> None:
    loads = PolicyProgress(policy="demo/w-0", stage="Loading", rewards=[0.1, 0.5, 0.9])
    assert plot(WaveProgress(wave="demo/w", policies=[loads]), tmp_path / "rewards.svg") == 3


def test_sparklines_rise_with_their_values_and_fit_their_width() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert len(sparkline([0.5] * 1000, width=10)) == 10
    assert sparkline([]) == ""
    assert sparkline([-1.0, 1.0]) == "▁█"


def test_a_line_says_what_matters() -> None:
    progress = WaveProgress(
        wave="demo/w", phase="Training", step=3, steps=50, policy_count=8, reward_recent=0.5, tokens=12000, eta_s=250
    )
    assert line(progress) == ("demo/w Training 3/50, 8 policies, reward 0.500 (best -), 12,000 tokens, 4m10s left")
    progress.evaluation = 0.25
    assert "(best -), evaluation 0.250, 12,000 tokens" in line(progress)
    assert [span(seconds) for seconds in (5, 65, 3700)] == ["5s", "1m05s", "1h01m"]


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def on_screen(width: int = 160) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, height=20)


def running(step: int, **changes: Any) -> WaveProgress:
    of = PolicyProgress(
        policy="demo/w-0", stage="Running", step=step, steps=4, reward_recent=0.5, reward_best=0.75, evaluation=0.25,
        rewards=[0.0, 1.0], step_s=2.0, eta_s=90, engine="e-0",
    )  # fmt: skip
    waits = PolicyProgress(
        policy="demo/w-1", stage="Failed", steps=4, failure_reason="BadReward", failure_message="no [data]"
    )
    options: dict[str, Any] = {"wave": "demo/w", "phase": "Training", "step": step, "steps": 4, "policy_count": 2}
    return WaveProgress(**(options | changes), policies=[of, waits])


def test_the_table_tells_of_each_policy_how_it_stands_what_it_earns_and_what_is_left() -> None:
    console = on_screen()
    console.print(progress_table(running(2), console))
    head, titles, rows = shown(console).splitlines()[0], shown(console).splitlines()[2], shown(console).splitlines()
    assert head.startswith("demo/w Training 2/4, 2 policies")
    assert [each.strip() for each in titles.strip("┃").split("┃")] == [
        "policy", "stage", "step", "", "reward", "best", "eval", "rewards so far", "s/step", "left", "engine",
    ]  # fmt: skip
    cells = [[each.strip() for each in row.strip("│").split("│")] for row in rows if row.startswith("│")]
    assert cells[0][:3] + cells[0][4:] == [
        "demo/w-0", "Running", "2/4", "0.500", "0.750", "0.250", "▁█", "2.0", "1m30s", "e-0",
    ]  # fmt: skip
    assert cells[1][:3] + cells[1][4:] == ["demo/w-1", "Failed", "0/4", "-", "-", "-", "", "-", "-", "no [data]"]


def test_a_wide_terminal_shows_figures_of_the_last_step_and_a_narrower_one_the_most_telling() -> None:
    progress = running(2)
    told = FiguresMessage(step=2, completion_length=212.4, truncated=0.125, clipped=0.0, kl=0.0123)
    progress.policies[0].figures.CopyFrom(told)
    for width, figures in ((160, ["212", "12.5%", "0.0123"]), (124, ["212", "0.0123"]), (110, [])):
        console = on_screen(width)
        console.print(progress_table(progress, console))
        cells = [[each.strip() for each in row.split("│")] for row in shown(console).splitlines() if "│" in row]
        at = cells[0].index("2.0")
        assert cells[0][at - len(figures) : at] == figures, "none is shown that is 0 for all"
        assert cells[1][at - len(figures) : at] == ["-"] * len(figures)
        assert cells[0][at - len(figures) - 1] == "▁█"
    progress.policies[0].figures.entropy = 1.25
    console = on_screen()
    console.print(progress_table(progress, console))
    row = [each.strip() for each in shown(console).splitlines()[4].split("│")]
    assert row[row.index("▁█") :][:6] == ["▁█", "212", "12.5%", "1.250", "0.0123", "2.0"]


def test_where_a_terminal_is_narrow_pictures_give_way_and_names_stay_whole() -> None:
    heads = []
    for width in (160, 130, 80):
        console = on_screen(width)
        progress = running(2)
        progress.policies[1].failure_message = "no data " * 20
        console.print(progress_table(progress, console))
        titles, *rows = [line for line in shown(console).splitlines() if line.startswith(("┃", "│"))]
        heads.append([each.strip() for each in titles.strip("┃").split("┃")])
        names = "".join(row.strip("│").split("│")[0].strip() for row in rows)
        assert (names, max(map(len, rows)) <= width) == ("demo/w-0demo/w-1", True)
    assert "" in heads[0]
    assert ("" in heads[1], "rewards so far" in heads[1]) == (False, True)
    assert "rewards so far" not in heads[2]


async def test_of_more_policies_than_fit_the_screen_failed_ones_are_shown_first_and_all_at_the_end() -> None:
    progress = running(2)
    first, failed = progress.policies
    others = [PolicyProgress(policy=f"demo/x-{number:02}", stage="Running", steps=4) for number in range(30)]
    progress = WaveProgress(wave="demo/w", phase="Failed", policies=[first, *others, failed])
    console = on_screen()
    console.print(progress_table(progress, console, 3))
    assert "3 of 32 policies, failed ones first; all of them at the end" in shown(console)
    rows = [row.strip("│").split("│")[0].strip() for row in shown(console).splitlines() if row.startswith("│")]
    assert rows == ["demo/w-1", "demo/w-0", "demo/x-00"]

    async def updates() -> AsyncIterator[WaveProgress]:
        yield progress

    console = on_screen()
    await _live(console, updates())
    assert all(each.policy in shown(console) for each in progress.policies)
    assert not any("of 32 policies" in row for row in shown(console).splitlines()[-36:])


async def test_on_a_terminal_the_table_is_drawn_anew_at_each_update_and_the_last_one_stays() -> None:
    async def updates() -> AsyncIterator[WaveProgress]:
        for step in (1, 2):
            yield running(step)
        yield running(4, phase="Complete")

    console = on_screen()
    last = await _live(console, updates())
    assert (last.phase, last.step) == ("Complete", 4)
    assert "demo/w Complete 4/4" in shown(console)
    assert shown(console).rindex("4/4") > shown(console).find("1/4")
