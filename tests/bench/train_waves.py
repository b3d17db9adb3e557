"""Whole steps of GRPO on a serving engine: many policies at once against one at a time, and what tenants notice."""

import dataclasses
import sys
from functools import partial

import msgspec

from tests.bench.bench import ROUND_S, Bench, Group, take_turns
from tests.bench.moe import upcycled
from tests.bench.our_setup import Setup
from tests.bench.places import scratch
from tests.bench.rows import Row, measured, percentile
from tests.bench.side import Side

FEW, MANY = 8, 64
EXPERTS = 8
ITL_TOKENS = 96
HANDOFFS = 9


def _concurrent(bench: Bench) -> list[Row]:
    rounds = _both_ways(bench)
    return [measured("train.concurrent8_over_sequential", rounds["together"], rounds["in turn"], _shape(bench))]


def _concurrent_moe(bench: Bench) -> list[Row]:
    """The same over experts."""
    rounds = _both_ways(dataclasses.replace(bench, base=upcycled(bench, EXPERTS)))
    note = f"{EXPERTS} experts, two for a token, and adapters on all of them; {_shape(bench)}"
    return [measured("train.moe_concurrent8_over_sequential", rounds["together"], rounds["in turn"], note)]


def _both_ways(bench: Bench) -> dict[str, list[float]]:
    """Seconds of a step of the policies together, and of theirs one after another."""
    with scratch("waves") as cache, _engine(bench, str(cache), FEW) as ours:
        bench.start(ours)
        _step(bench, ours, 1, 0, together=True)
        ways = {"together": True, "in turn": False}
        sides = {name: partial(_round, bench, ours, FEW, together) for name, together in ways.items()}
        return take_turns(bench.rounds, sides)


def _many(bench: Bench) -> list[Row]:
    """Seconds a policy."""
    with scratch("waves") as cache, _engine(bench, str(cache), MANY) as ours:
        bench.start(ours)
        _step(bench, ours, 1, 0, together=True)
        sides = {str(count): partial(_round, bench, ours, count, True) for count in (MANY, FEW)}
        rounds = take_turns(bench.rounds, sides)
    many, few = ([seconds / count for seconds in rounds[str(count)]] for count in (MANY, FEW))
    return [measured("train.concurrent64_over_concurrent8", many, few, _shape(bench))]


def _beside(bench: Bench) -> list[Row]:
    """Handoffs, and tenants' gaps while the wave trains."""
    with scratch("waves") as cache, _engine(bench, str(cache), FEW) as ours:
        bench.start(ours)
        _step(bench, ours, FEW, 0, together=True)
        found = [ours.ask("hand_over", ROUND_S, number=number) for number in range(HANDOFFS)]
        handoffs, copies = ([each[name] * 1e3 for each in found] for name in ("handoff", "memcpy"))
        sides = {name: partial(_p95, bench, ours, count) for name, count in {"idle": 0, "beside": FEW}.items()}
        gaps = take_turns(bench.rounds, sides)
    return [
        measured("train.handoff_over_memcpy", handoffs, copies),
        measured("train.serve_itl_p95_over_idle", gaps["beside"], gaps["idle"]),
    ]


def _engine(bench: Bench, cache: str, slots: int) -> Side:
    setup = Setup(str(bench.base), cache, bench.device, slots=slots, max_rank=8, context=256)
    return bench.side("waves", sys.executable, "tests.bench.our_waves", msgspec.to_builtins(setup))


def _round(bench: Bench, side: Side, policies: int, together: bool, number: int) -> float:
    return _step(bench, side, policies, number, together=together)


def _step(bench: Bench, side: Side, policies: int, number: int, *, together: bool) -> float:
    with bench.doing(f"a step of {policies} {'together' if together else 'in turn'}, round {number}") as step:
        found = side.ask("step", ROUND_S, policies=policies, tokens=bench.new_tokens, together=together)
        step.note = f"{found['seconds']:.1f} s, {found['tokens']} tokens learnt"
    return float(found["seconds"])


def _p95(bench: Bench, side: Side, policies: int, number: int) -> float:
    tokens = 16 if bench.quick else ITL_TOKENS
    with bench.doing(f"tenants beside {policies} policies, round {number}") as step:
        gaps = side.ask("tenants", ROUND_S, train=policies, tokens=tokens)["gaps"]
        found = percentile(gaps, 95) * 1e3
        step.note = f"p95 {found:.1f} ms, worst {max(gaps) * 1e3:.0f} ms"
    return found


def _shape(bench: Bench) -> str:
    return f"4 prompts x 8 completions x {bench.new_tokens} tokens a policy, rank 8"


GROUPS = (
    Group(("train.concurrent8_over_sequential",), _concurrent),
    Group(("train.concurrent64_over_concurrent8",), _many),
    Group(("train.moe_concurrent8_over_sequential",), _concurrent_moe),
    Group(("train.handoff_over_memcpy", "train.serve_itl_p95_over_idle"), _beside),
)
