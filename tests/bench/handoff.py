"""A new revision handed over: published to the live engine, against merging, saving and loading the full model.

Both begin with the trained adapter's tensors in memory and end with the first token of the new revision. Each side
has the machine to itself in turn, since each holds the whole base; only what is handed over is timed.
"""

import json
import shutil
import sys
from pathlib import Path

from tests.bench.adapters import WEIGHTS, names, write_config, write_weights
from tests.bench.bench import Bench, Group
from tests.bench.models import linears, write_dense_4b
from tests.bench.our_setup import Setup
from tests.bench.places import scratch
from tests.bench.rows import Row, measured

RANK = 32
PROMPT_TOKENS = 8  # few, so that handing over is measured, not reading a prompt
HANDOFFS = 3  # revisions that one live engine is given in a round
FULL_S = 1800.0


def _handoff(bench: Bench) -> list[Row]:
    with scratch("handoff") as folder:
        base = bench.base
        if not (bench.quick or bench.chosen):
            base = folder / "base"
            base.mkdir()
            with bench.doing("a random base of Qwen3-4B's shape, 8 GB") as step:
                write_dense_4b(bench.base, base, lambda file: setattr(step, "note", file))
        shapes = linears(base)
        with bench.doing("revisions of an adapter"):
            revisions = [_revision(folder / f"revision{number}", shapes, number) for number in range(1 + HANDOFFS)]
        ours: list[float] = []
        theirs: list[float] = []
        parts: list[dict[str, float]] = []
        for _ in range(bench.rounds):
            ours += _publish(bench, base, folder / "store", revisions)
            parts.append(_replace(bench, base, folder / "merged", revisions[0]))
            theirs.append(parts[-1]["seconds"])
        spent = ", ".join(f"{name} {parts[-1][name]:.1f} s" for name in ("merge", "save", "load", "first"))
        size = (revisions[0] / WEIGHTS).stat().st_size / 1e6
        note = f"rank {RANK}, {size:.0f} MB; the full model's last round: {spent}"
    return [measured("handoff.dense_over_full", ours, theirs, note)]


def _revision(folder: Path, shapes: dict[str, tuple[int, int]], number: int) -> Path:
    folder.mkdir()
    write_weights(folder, shapes, RANK, seed=number)
    write_config(folder, shapes, RANK, alpha=2.0 * RANK)
    return folder


def _publish(bench: Bench, base: Path, store: Path, revisions: list[Path]) -> list[float]:
    """Seconds of each handoff to a live engine that serves the revision before."""
    (name,) = names(RANK, 1)
    shutil.rmtree(store, ignore_errors=True)
    with scratch("engine") as cache:
        setup = Setup(str(base), str(cache), bench.device, f"file://{store}", RANK, slots=4, kv_bytes=256 << 20)
        with bench.ours(sys.executable, setup) as ours:
            bench.start(ours)
            taken = []
            for number, revision in enumerate(revisions):
                work = bench.work(number, requests=1, prompt_tokens=PROMPT_TOKENS, new_tokens=1)
                with bench.doing(f"ours: publish revision {number}") as step:
                    found = ours.ask(
                        "publish", name=name, source=str(revision), into=f"{store}/{number}", prompt=work.prompts()[0]
                    )
                    step.note = json.dumps({key: round(value, 4) for key, value in found.items()})
                taken.append(float(found["seconds"]))
    return taken[1:]  # the first one found no older revision to take over from


def _replace(bench: Bench, base: Path, merged: Path, revision: Path) -> dict[str, float]:
    """Seconds of handing the full model over, and of its parts."""
    setup = {
        "base": str(base),
        "small": str(bench.base),
        "adapter": str(revision),
        "merged": str(merged),
        "device": bench.device,
        "prompt": bench.work(0, requests=1, prompt_tokens=PROMPT_TOKENS).prompts()[0],
    }
    with bench.side("full", sys.executable, "tests.bench.full_model", setup) as full:
        bench.start(full)
        with bench.doing("full model: merge, save, load, first token") as step:
            found = full.ask("hand_over", FULL_S)
            step.note = f"{found['seconds']:.1f} s"
    shutil.rmtree(merged)
    return {key: float(value) for key, value in found.items()}


GROUPS = (Group(("handoff.dense_over_full",), _handoff),)
