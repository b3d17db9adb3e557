"""Measure the engine's performance promises: python -m tests.bench [--only serve,load] [--device cuda] [--model DIR].

Prints one table with a ratio per promise, and writes build/bench/FAMILY.json and FAMILY.svg. The file name includes
another base, another device or a quick run, so that all rows of a file are comparable. The exit status is 0 whether
or not the promises hold: a figure is not a test.
"""

import argparse
import hashlib
import os
import signal
import sys
from pathlib import Path

from e2e.cluster.progress import Steps
from e2e.samples import prepare
from tests.bench import cold, gaps, handoff, load, moe, parallel, results, serve, train, train_waves, windows
from tests.bench.bench import Bench
from tests.bench.models import sample_base, vocabulary
from tests.bench.parts import measure, parts_of
from tests.bench.promises import PROMISES
from tests.bench.rows import Row
from tests.bench.table import table
from tests.bench.workload import NEW_TOKENS

FAMILIES = {
    "serve": (*serve.GROUPS, *moe.GROUPS, *windows.GROUPS),
    "load": load.GROUPS,
    "cold": (*cold.GROUPS, *gaps.GROUPS),
    "handoff": handoff.GROUPS,
    "train": train.GROUPS,
    "waves": train_waves.GROUPS,
    "tp": parallel.GROUPS,
}


def main() -> int:
    """Run the selected benchmarks; return the exit status."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # exiting ends every side
    steps = Steps(title="bench")
    bench = _bench(options, steps)
    found: dict[str, Row] = {}
    for family, rows in measure(bench, FAMILIES, options.only, steps):
        found |= {row.metric: row for row in rows}
        _write(family, rows, bench)
    if not options.only:
        _write("all", list(found.values()), bench)
    print(table([found[promise.metric] for promise in PROMISES if promise.metric in found]))
    return 0


def _write(family: str, rows: list[Row], bench: Bench) -> None:
    base = bench.base.name if bench.chosen else "SmolLM2-135M-Instruct"
    kinds = (base if bench.chosen else "", "" if bench.device == "cpu" else bench.device, "quick" * bench.quick)
    title = f"{family}: {base} in bfloat16 on {bench.device}" + " (quick)" * bench.quick
    results.write("-".join(filter(None, (family, *kinds))), title, rows)


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
    parser.add_argument(
        "--only", type=parts_of(FAMILIES), default=(), help=f"some of {', '.join(FAMILIES)}, or metrics"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", type=Path, help="a base in safetensors with its tokenizer; default: the sample")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small and short: tries the machinery, measures nothing")
    options = parser.parse_args()
    if options.model is not None:
        options.model = options.model.resolve()
    return options


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
