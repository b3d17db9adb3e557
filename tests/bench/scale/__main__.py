"""Measure the control plane's promises: python -m tests.bench.scale [--only catalog] [--quick].

Prints one table, and writes build/bench/scale.json and scale.svg (scale-quick for a quick run). The exit status is 0
whether or not the promises hold: a figure is not a test.
"""

import argparse
import signal
import sys

from e2e.cluster.progress import Steps
from tests.bench import results
from tests.bench.parts import measure, parts_of
from tests.bench.promises import SCALE
from tests.bench.rows import Row
from tests.bench.scale.families import FAMILIES
from tests.bench.scale.scale import Scale
from tests.bench.table import table


def main() -> int:
    """Run the selected benchmarks; return the exit status."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # exiting ends every process
    scale = Scale(quick=options.quick, rounds=options.rounds, steps=Steps(title="bench-scale"))
    found: dict[str, Row] = {}
    for _, rows in measure(scale, FAMILIES, options.only, scale.steps):
        found |= {row.metric: row for row in rows}
        name, how = ("scale-quick", " (quick)") if scale.quick else ("scale", "")
        results.write(name, f"scale: the control plane{how}", rows)
    print(table([found[promise.metric] for promise in SCALE if promise.metric in found]))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", type=parts_of(FAMILIES), default=(), help=f"some of {', '.join(FAMILIES)}, or metrics"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a hundredth of everything: tries the machinery")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
