"""The context that every family of benchmarks gets, and how the compared sides take turns."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from e2e.cluster.paths import REPOSITORY
from e2e.cluster.progress import Steps
from tests.bench import parts
from tests.bench.our_setup import Setup
from tests.bench.places import LOGS
from tests.bench.side import Side
from tests.bench.workload import Work

T = TypeVar("T")
START_S = 900.0
ROUND_S = 900.0
_QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "WARNING"}


@dataclass(frozen=True)
class Bench:
    """One invocation: the base, the device, the number of rounds, and the progress display."""

    base: Path
    base_key: str  # names the base in the cache
    vocabulary: int
    device: str
    rounds: int
    new_tokens: int
    chosen: bool  # the base was given by the user; it is not the sample
    quick: bool  # everything is smaller: tries the machinery, does not measure
    steps: Steps

    def work(self, seed: int, **changes: Any) -> Work:
        """Return the workload of one round of requests on this base."""
        return Work(**{"seed": seed, "vocabulary": self.vocabulary, "new_tokens": self.new_tokens, **changes})

    def ours(self, python: str, setup: Setup, name: str = "ours", **environment: str) -> Side:
        """Return a side for our engine's process, not started yet."""
        return self.side(name, python, "tests.bench.our_engine", msgspec.to_builtins(setup), **environment)

    def side(self, name: str, python: str, module: str, setup: dict[str, Any], **environment: str) -> Side:
        """Return a side that runs one of our modules, not started yet."""
        told = msgspec.json.encode(setup).decode()
        paths = filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))
        return Side(
            name,
            [python, "-m", module, told],
            LOGS / f"{name}.log",
            {"PYTHONPATH": os.pathsep.join(paths), **_QUIET, **environment},
        )

    def start(self, side: Side) -> None:
        """Start a side, showing how long it takes."""
        with self.steps.step(f"{side.name}: start"):
            side.ask("start", START_S)

    def ask(self, side: Side, work: Work, **beside: Any) -> dict[str, Any]:
        """Run one round of requests at a side; `beside` names what else it does meanwhile."""
        return side.ask("generate", ROUND_S, **asdict(work), **beside)

    def round(self, side: Side, work: Work, what: str, **beside: Any) -> dict[str, Any]:
        """Run one round of requests at a side, and show its rate."""
        with self.steps.step(f"{side.name}: {what}") as step:
            found = self.ask(side, work, **beside)
            step.note = f"{found['rate']:.0f} tok/s"
        return found

    def doing(self, what: str) -> AbstractContextManager[Any]:
        """Show `what` as a step while the block runs."""
        return self.steps.step(what)


Group = parts.Group[Bench]


def take_turns(rounds: int, sides: Mapping[str, Callable[[int], T]]) -> dict[str, list[T]]:
    """Return each side's results of `rounds` rounds, in which every side is measured once in turn.

    Other load on the machine and drift of its clock speed thus affect all sides alike.
    """
    found: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, measure in sides.items():
            found[name].append(measure(number))
    return found
