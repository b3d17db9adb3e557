"""What every family of benchmarks is given, and the one way in which sides take turns."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from e2e.cluster.paths import REPOSITORY
from e2e.cluster.progress import Steps
from tests.bench.our_setup import Setup
from tests.bench.places import LOGS
from tests.bench.rows import Row
from tests.bench.side import Side
from tests.bench.workload import Work

T = TypeVar("T")
START_S = 900.0
ROUND_S = 900.0
_QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "WARNING"}


@dataclass(frozen=True)
class Bench:
    """One invocation: which base on which device, how often, and whom to tell how it goes."""

    base: Path
    base_key: str  # names the base in the cache
    vocabulary: int
    device: str
    rounds: int
    new_tokens: int
    chosen: bool  # the base is one that was asked for, not the sample
    quick: bool  # smaller everything: to try the machinery, not to measure
    steps: Steps

    def work(self, seed: int, **changes: Any) -> Work:
        """A round of requests on this base."""
        return Work(**{"seed": seed, "vocabulary": self.vocabulary, "new_tokens": self.new_tokens, **changes})

    def ours(self, python: str, setup: Setup, name: str = "ours", **environment: str) -> Side:
        """Our engine's process, not started yet."""
        return self.side(name, python, "tests.bench.our_engine", msgspec.to_builtins(setup), **environment)

    def side(self, name: str, python: str, module: str, setup: dict[str, Any], **environment: str) -> Side:
        """A process of one of our modules."""
        told = msgspec.json.encode(setup).decode()
        paths = filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))
        return Side(
            name,
            [python, "-m", module, told],
            LOGS / f"{name}.log",
            {"PYTHONPATH": os.pathsep.join(paths), **_QUIET, **environment},
        )

    def start(self, side: Side) -> None:
        """Bring a side up, showing how long it takes."""
        with self.steps.step(f"{side.name}: start"):
            side.ask("start", START_S)

    def ask(self, side: Side, work: Work, **beside: Any) -> dict[str, Any]:
        """One round of requests at a side; `beside` is what else it does meanwhile."""
        return side.ask("generate", ROUND_S, **asdict(work), **beside)

    def round(self, side: Side, work: Work, what: str, **beside: Any) -> dict[str, Any]:
        """The same, with its rate shown."""
        with self.steps.step(f"{side.name}: {what}") as step:
            found = self.ask(side, work, **beside)
            step.note = f"{found['rate']:.0f} tok/s"
        return found

    def doing(self, what: str) -> AbstractContextManager[Any]:
        """Show `what` while it is done."""
        return self.steps.step(what)


class Group(NamedTuple):
    """Promises that are measured together."""

    metrics: tuple[str, ...]
    measure: Callable[[Bench], list[Row]]


def take_turns(rounds: int, sides: Mapping[str, Callable[[int], T]]) -> dict[str, list[T]]:
    """Each side's results of `rounds` rounds: all sides once, then all once more, and so on.

    Whatever else the machine does, and however its clock wanders, thus falls on all sides alike.
    """
    found: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, measure in sides.items():
            found[name].append(measure(number))
    return found
