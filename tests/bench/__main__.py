"""Measure the engine's performance promises: python -m tests.bench [--only serve,load] [--device cuda] [--model DIR].

Prints one table with a ratio each, and writes build/bench/NAME.json and NAME.svg. The exit status is 0 whether or not
the promises hold: a figure is not a test.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from e2e.cluster.progress import Steps
from e2e.samples import prepare
from tests.bench import cold, handoff, load, results, serve
from tests.bench.bench import Bench
from tests.bench.models import sample_base, vocabulary
from tests.bench.promises import PROMISES
from tests.bench.rows import Row, unmeasured
from tests.bench.side import SideFailed
from tests.bench.table import table
from tests.bench.workload import NEW_TOKENS

FAMILIES: dict[str, Callable[[Bench], Iterator[list[Row]]]] = {
    "serve": serve.measure,
    "load": load.measure,
    "cold": cold.measure,
    "handoff": handoff.measure,
}
METRICS = {
    "serve": tuple(each.metric for each in PROMISES if each.metric.startswith("serve.") and "itl" not in each.metric),
    "load": tuple(each.metric for each in PROMISES if each.metric.startswith("load.") and "cold" not in each.metric),
    "cold": ("load.cold64_p95_over_warm_p95", "serve.itl_p95_during_loads_over_idle", "ttft.cold_over_warm"),
    "handoff": ("handoff.dense_over_full",),
}


def main() -> int:
    """Measure what was asked for; return the exit status."""
    options = _options()
    steps = Steps(title="bench")
    bench = _bench(options, steps)
    found: dict[str, Row] = {}
    for family in options.only:
        steps.say(f"== {family}")
        for row in _rows(bench, family):
            found[row.metric] = row
            ours = [found[metric] for metric in METRICS[family] if metric in found]
            results.write(family, f"{family}: {bench.base.name} on {bench.device}", ours)
    rows = [found[promise.metric] for promise in PROMISES if promise.metric in found]
    results.write("all", f"Promises, {bench.base.name} on {bench.device}", rows)
    print(table(rows))
    return 0


def _rows(bench: Bench, family: str) -> Iterator[Row]:
    """A family's rows as they come; what could not be measured is told in rows as well."""
    told = set()
    why = "not measured"
    try:
        for group in FAMILIES[family](bench):
            for row in group:
                told.add(row.metric)
                yield row
    except SideFailed as error:
        bench.steps.say(str(error))
        why = str(error).splitlines()[0]
    for metric in METRICS[family]:
        if metric not in told:
            yield unmeasured(metric, why)


def _bench(options: argparse.Namespace, steps: Steps) -> Bench:
    source = options.model or prepare(steps.say).base
    with steps.step("base in bfloat16"):
        base = source if options.model else sample_base(source)
    return Bench(
        base=base,
        base_key=hashlib.sha256((base / "config.json").read_bytes()).hexdigest()[:12],
        vocabulary=vocabulary(base),
        device=options.device,
        rounds=options.rounds,
        new_tokens=8 if options.quick else NEW_TOKENS,
        chosen=options.model is not None,
        quick=options.quick,
        steps=steps,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=_families, default=tuple(FAMILIES), help=f"some of {', '.join(FAMILIES)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", type=Path, help="a base in safetensors with its tokenizer; default: the sample")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small and short: tries the machinery, measures nothing")
    options = parser.parse_args()
    if options.model is not None:
        options.model = options.model.resolve()
    return options


def _families(text: str) -> tuple[str, ...]:
    chosen = tuple(filter(None, text.replace(",", " ").split()))
    unknown = [name for name in chosen if name not in FAMILIES]
    if unknown or not chosen:
        raise argparse.ArgumentTypeError(f"names some of {', '.join(FAMILIES)}")
    return chosen


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
