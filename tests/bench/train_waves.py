"""Complete GRPO steps on a serving engine: many policies at once against one at a time, and what tenants notice."""

import dataclasses
import sys
from functools import partial
from statistics import median

import msgspec

from tests.bench.bench import ROUND_S, Bench, Group, take_turns
from tests.bench.moe import upcycled
from tests.bench.our_setup import Setup
from tests.bench.places import scratch
from tests.bench.prompts import GROUP, PROMPTS, RANK
from tests.bench.rows import Row, measured, percentile
from tests.bench.side import Side

FEW, MANY = 8, 64
EXPERTS = 8
ITL_TOKENS, IDLE_S, TRAINING_S = 96, 15, 90
HANDOFFS = 61  # a decode step varies by more than a handoff takes


def _concurrent(bench: Bench) -> list[Row]:
    rounds, bound = _both_ways(bench)
    note = f"{_shape(bench)}; {bound}"
    return [measured("train.concurrent8_over_sequential", rounds["together"], rounds["in turn"], note)]


def _concurrent_moe(bench: Bench) -> list[Row]:
    """Compare the same over experts."""
    rounds, bound = _both_ways(dataclasses.replace(bench, base=upcycled(bench, EXPERTS)))
    note = f"{EXPERTS} experts, two for a token, and adapters on all of them; {_shape(bench)}; {bound}"
    return [measured("train.moe_concurrent8_over_sequential", rounds["together"], rounds["in turn"], note)]


def _both_ways(bench: Bench) -> tuple[dict[str, list[float]], str]:
    """Return the seconds of a step of all policies together and in turn, and a note on the hardware's bound."""
    with scratch("waves") as cache, _engine(bench, str(cache), FEW) as ours:
        bench.start(ours)
        _step(bench, ours, FEW, 0, together=True)
        ways = {"together": True, "in turn": False}
        sides = {name: partial(_step, bench, ours, FEW, together=together) for name, together in ways.items()}
        rounds = take_turns(bench.rounds, sides)
        roof = float(ours.ask("roof", policies=FEW, tokens=bench.new_tokens)["seconds"])
    reached = {name: roof / median(seconds) for name, seconds in rounds.items()}
    return rounds, (
        f"of the peak of large products together reaches {reached['together']:.0%} and in turn "
        f"{reached['in turn']:.0%}: no engine could be more than {1 / reached['in turn']:.2g}x as fast here"
    )


def _many(bench: Bench) -> list[Row]:
    """Compare seconds per policy, with smaller steps: 64 policies at full size would take ten minutes per round."""
    with scratch("waves") as cache, _engine(bench, str(cache), MANY) as ours:
        bench.start(ours)
        _step(bench, ours, MANY, 0, together=True, prompts=1)
        sides = {str(count): partial(_step, bench, ours, count, together=True, prompts=1) for count in (MANY, FEW)}
        rounds = take_turns(bench.rounds, sides)
    many, few = ([seconds / count for seconds in rounds[str(count)]] for count in (MANY, FEW))
    return [measured("train.concurrent64_over_concurrent8", many, few, _shape(bench, prompts=1))]


def _against_trl(bench: Bench) -> list[Row]:
    """Compare seconds per policy. TRL's policies would take equal steps one after another, so only one is timed."""
    with scratch("waves") as cache, _engine(bench, str(cache), FEW) as ours, _trl(bench) as trl:
        for side in (ours, trl):
            bench.start(side)
        _step(bench, ours, FEW, 0, together=True)
        _trl_step(bench, trl, 0)
        rounds = take_turns(
            bench.rounds,
            {"ours": partial(_step, bench, ours, FEW, together=True), "trl": partial(_trl_step, bench, trl)},
        )
    each = [seconds / FEW for seconds in rounds["ours"]]
    return [measured("train.concurrent8_over_trl", each, rounds["trl"], f"seconds a policy; {_shape(bench)}")]


def _beside(bench: Bench) -> list[Row]:
    """Measure handoffs, and tenants' token gaps while the wave trains."""
    with scratch("waves") as cache, _engine(bench, str(cache), FEW) as ours:
        bench.start(ours)
        _step(bench, ours, FEW, 0, together=True)
        found = [ours.ask("hand_over", ROUND_S, number=number) for number in range(HANDOFFS)]
        firsts, steps, copies = ([each[name] * 1e3 for each in found] for name in ("first", "step", "memcpy"))
        sides = {name: partial(_p95, bench, ours, count) for name, count in {"idle": 0, "beside": FEW}.items()}
        gaps = take_turns(bench.rounds, sides)
    return [
        measured("train.handoff_over_memcpy", [each - median(steps) for each in firsts], copies),
        measured("train.serve_itl_p95_over_idle", gaps["beside"], gaps["idle"]),
    ]


def _engine(bench: Bench, cache: str, slots: int) -> Side:
    setup = Setup(str(bench.base), cache, bench.device, slots=slots, max_rank=8, context=256)
    return bench.side("waves", sys.executable, "tests.bench.our_waves", msgspec.to_builtins(setup))


def _trl(bench: Bench) -> Side:
    setup = {"base": str(bench.base), "device": bench.device, "tokens": bench.new_tokens, "rank": RANK}
    return bench.side("trl", sys.executable, "tests.bench.trl_steps", setup)


def _trl_step(bench: Bench, side: Side, number: int) -> float:
    with bench.doing(f"a step of one policy by TRL, round {number}") as step:
        seconds = float(side.ask("step", ROUND_S)["seconds"])
        step.note = f"{seconds:.1f} s"
    return seconds


def _step(bench: Bench, side: Side, policies: int, number: int, *, together: bool, prompts: int = PROMPTS) -> float:
    with bench.doing(f"a step of {policies} {'together' if together else 'in turn'}, round {number}") as step:
        told = {"policies": policies, "tokens": bench.new_tokens, "together": together, "prompts": prompts}
        found = side.ask("step", ROUND_S, **told)
        step.note = f"{found['seconds']:.1f} s, {found['tokens']} tokens learnt"
    return float(found["seconds"])


def _p95(bench: Bench, side: Side, policies: int, number: int) -> float:
    """Return the p95 of tenants' token gaps, measured long enough to include rollouts and updates.

    A wave's complete step takes about a minute while tenants are served.
    """
    seconds = 2 if bench.quick else TRAINING_S if policies else IDLE_S
    with bench.doing(f"tenants beside {policies} policies, round {number}") as step:
        told = side.ask("tenants", ROUND_S, train=policies, tokens=ITL_TOKENS, seconds=seconds)
        gaps, updating = told["gaps"], told["updating"]
        found = percentile(gaps, 95) * 1e3
        step.note = f"p95 {found:.1f} ms, worst {max(gaps) * 1e3:.0f} ms; {updating:.1f} s of {seconds} s updated"
    return found


def _shape(bench: Bench, prompts: int = PROMPTS) -> str:
    return f"{prompts} prompts x {GROUP} completions x {bench.new_tokens} tokens a policy, rank {RANK}"


GROUPS = (
    Group(("train.concurrent8_over_sequential",), _concurrent),
    Group(("train.concurrent64_over_concurrent8",), _many),
    Group(("train.moe_concurrent8_over_sequential",), _concurrent_moe),
    Group(("train.concurrent8_over_trl",), _against_trl),
    Group(("train.handoff_over_memcpy", "train.serve_itl_p95_over_idle"), _beside),
)
