"""Handing over a new revision: publishing it to the live engine against merging, saving and loading the full model.

Both begin with the trained adapter's tensors in memory and end with the first token of the new revision. The sides
take turns having the machine to themselves, since each holds a complete base; only the handoff is timed.
"""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedConfig

from tests.bench.adapters import WEIGHTS, names, write_config, write_weights
from tests.bench.bench import Bench, Group
from tests.bench.memory import available_bytes
from tests.bench.models import linears, nbytes, qwen3_4b, qwen3_30b_a3b, write_base
from tests.bench.our_setup import Setup
from tests.bench.places import bench_cache, scratch
from tests.bench.rows import Row, measured
from tests.bench.shapes import Shapes, expert_shapes

PROMPT_TOKENS = 8  # few, so that the handoff is measured and not the prefill
HANDOFFS = 3  # revisions that one live engine gets per round
FULL_S = 1800.0
# The shares that a slice may take of free memory, which must also hold copies of the tensors being saved or loaded,
# and of free disk, which holds it twice.
_MEMORY_SHARE, _DISK_SHARE = 0.5, 0.4


class Kind(NamedTuple):
    """One kind of base."""

    metric: str
    rank: int
    config: Callable[[], PreTrainedConfig]
    shapes: Callable[[Path], Shapes]


def moe_slice() -> PreTrainedConfig:
    """Return the config of a slice of Qwen3-30B-A3B with as many layers as fit this machine."""
    room = min(_MEMORY_SHARE * available_bytes(), _DISK_SHARE * shutil.disk_usage(bench_cache()).free)
    one, two = (nbytes(qwen3_30b_a3b(layers)) for layers in (1, 2))
    return qwen3_30b_a3b(max(1, min(48, int((room - 2 * one + two) // (two - one)))))


DENSE = Kind("handoff.dense_over_full", 32, qwen3_4b, linears)
MOE = Kind("handoff.moe_over_full", 1, moe_slice, expert_shapes)


def _handoff(bench: Bench, kind: Kind) -> list[Row]:
    with scratch("handoff") as folder:
        base, what = bench.base, "the base that was asked for"
        if not (bench.quick or bench.chosen):
            base, config = folder / "base", kind.config()
            what = f"{config.num_hidden_layers} layers, {nbytes(config) / 1e9:.1f} GB"
            base.mkdir()
            with bench.doing(f"a random {config.model_type} base of {what}") as step:
                write_base(config, bench.base, base, lambda file: setattr(step, "note", file))
        shapes = kind.shapes(base)
        with bench.doing("revisions of an adapter"):
            revisions = [
                _revision(folder / f"revision{number}", shapes, kind.rank, number) for number in range(1 + HANDOFFS)
            ]
        ours: list[float] = []
        theirs: list[float] = []
        parts: list[dict[str, float]] = []
        for _ in range(bench.rounds):
            ours += _publish(bench, kind, base, folder / "store", revisions)
            parts.append(_replace(bench, base, folder / "merged", revisions[0], shapes))
            theirs.append(parts[-1]["seconds"])
        spent = ", ".join(f"{name} {parts[-1][name]:.1f} s" for name in ("merge", "save", "load", "first"))
        size = (revisions[0] / WEIGHTS).stat().st_size / 1e6
        note = f"{what}; rank {kind.rank}, {size:.0f} MB; the full model's last round: {spent}"
    return [measured(kind.metric, ours, theirs, note)]


def _revision(folder: Path, shapes: Shapes, rank: int, number: int) -> Path:
    folder.mkdir()
    write_weights(folder, shapes, rank, seed=number)
    write_config(folder, shapes, rank, alpha=2.0 * rank)
    return folder


def _publish(bench: Bench, kind: Kind, base: Path, store: Path, revisions: list[Path]) -> list[float]:
    """Return the seconds of each handoff to a live engine that serves the previous revision."""
    (name,) = names(kind.rank, 1)
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    with scratch("engine") as cache:
        setup = Setup(str(base), str(cache), bench.device, f"file://{store}", kind.rank, slots=4, kv_bytes=256 << 20)
        with bench.ours(sys.executable, setup) as ours:
            bench.start(ours)
            taken = []
            for number, revision in enumerate(revisions):
                work = bench.work(number, requests=1, prompt_tokens=PROMPT_TOKENS, new_tokens=1)
                with bench.doing(f"ours: publish revision {number}") as step:
                    found = ours.ask(
                        "publish", name=name, source=str(revision), into=f"file://{store}", prompt=work.prompts()[0]
                    )
                    step.note = json.dumps({key: round(value, 4) for key, value in found.items()})
                taken.append(float(found["seconds"]))
    return taken[1:]  # the first one had no older revision to replace


def _replace(bench: Bench, base: Path, merged: Path, revision: Path, shapes: Shapes) -> dict[str, float]:
    """Return the seconds of handing the full model over, and of each part."""
    setup = {
        "base": str(base),
        "small": str(bench.base),
        "adapter": str(revision),
        "experts": any(".experts." in path for path in shapes),
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


GROUPS = tuple(Group((kind.metric,), partial(_handoff, kind=kind)) for kind in (DENSE, MOE))
