"""Updates of many policies: compared with PEFT and torch's AdamW, their memory, and resuming after a kill."""

import sys
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

from tests.bench.bench import ROUND_S, Bench, Group, take_turns
from tests.bench.rollout_data import Experience
from tests.bench.rows import Row, measured
from tests.bench.side import Side

_POLICIES = 8
_RANK = 8


def _update(bench: Bench) -> list[Row]:
    setup = _setup(bench)
    with (
        bench.side("ours", sys.executable, "tests.bench.our_update", setup) as ours,
        bench.side("peft", sys.executable, "tests.bench.peft_update", setup) as peft,
    ):
        for side in (ours, peft):
            bench.start(side)
            _ask(bench, side, "update", _small(bench))
        sides = {side.name: partial(_round, bench, side, "update", _POLICIES) for side in (ours, peft)}
        rounds = take_turns(bench.rounds, sides)
    seconds = {name: [found["seconds"] for found in each] for name, each in rounds.items()}
    tokens, rows = _whole(bench, 1).tokens, rounds["ours"][0]["rows"]
    note = f"{tokens} tokens of {_POLICIES} policies of rank {_RANK}; we compute {rows} rows: a prompt once a group"
    return [measured("train.update8_over_peft", seconds["ours"], seconds["peft"], note)]


def _peak(bench: Bench) -> list[Row]:
    """Compare the peak memory of a trainer with one policy and one with all, each in its own process, in turns."""
    counts = {"one": 1, "all": _POLICIES}
    with ExitStack() as stack:
        ways = {}
        for name, count in counts.items():
            setup = _setup(bench) | {"policies": count}
            side = stack.enter_context(bench.side(name, sys.executable, "tests.bench.our_update", setup))
            bench.start(side)
            _ask(bench, side, "peak", _whole(bench, 0, policies=count))
            ways[name] = partial(_round, bench, side, "peak", count)
        rounds = take_turns(bench.rounds, ways)
    sizes = {name: [found["bytes"] / 1e6 for found in each] for name, each in rounds.items()}
    return [measured("train.peak_memory_8_over_1", sizes["all"], sizes["one"], "the whole process, base included")]


def _resume(bench: Bench) -> list[Row]:
    """In each round an engine trains, is killed within a step, and another resumes from the checkpoint."""
    setup = {"base": str(bench.base), "device": bench.device, "tokens": bench.new_tokens}
    found = []
    with bench.side("resume", sys.executable, "tests.bench.our_resume", setup) as side:
        bench.start(side)
        for number in range(bench.rounds):
            with bench.doing(f"killed and resumed, round {number}") as step:
                found.append(side.ask("resume", ROUND_S))
                step.note = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found[-1].items())
    after, steps = ([each[name] for each in found] for name in ("resumed", "step"))
    pods = f"{median(each['pod'] for each in found):.1f} s"
    note = f"one policy; from when the other pod is ready, which took {pods} (process start and base); no operator"
    return [measured("train.resume_s_over_step_s", after, steps, note)]


def _setup(bench: Bench) -> dict[str, Any]:
    return {"base": str(bench.base), "device": bench.device, "policies": _POLICIES, "rank": _RANK}


def _whole(bench: Bench, seed: int, policies: int = _POLICIES) -> Experience:
    """Return the data of a small but realistic wave; a single prompt with --quick."""
    return Experience(seed, bench.vocabulary, policies, prompts=1 if bench.quick else 4, new_tokens=bench.new_tokens)


def _round(bench: Bench, side: Side, what: str, policies: int, number: int) -> dict[str, Any]:
    return _ask(bench, side, what, _whole(bench, number + 1, policies))


def _small(bench: Bench) -> Experience:
    """Return the data of a warm-up update."""
    return Experience(0, bench.vocabulary, policies=1, prompts=1, new_tokens=8)


def _ask(bench: Bench, side: Side, what: str, experience: Experience) -> dict[str, Any]:
    with bench.doing(f"{side.name}: {what} of {experience.policies}") as step:
        found = side.ask(what, ROUND_S, **asdict(experience))
        step.note = f"{found['seconds']:.1f} s"
    return found


GROUPS = (
    Group(("train.update8_over_peft",), _update),
    Group(("train.peak_memory_8_over_1",), _peak),
    Group(("train.resume_s_over_step_s",), _resume),
)
