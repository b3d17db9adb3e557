"""The parts of a benchmark: groups of promises, of which `--only` selects families or single metrics."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from e2e.cluster.progress import Steps
from tests.bench.promises import BY_METRIC, SCALE
from tests.bench.rows import Row, unmeasured
from tests.bench.side import SideFailed

T = TypeVar("T")


class Group(NamedTuple, Generic[T]):
    """Promises that are measured together, in the context of an invocation."""

    metrics: tuple[str, ...]
    measure: Callable[[T], list[Row]]


def measure(
    context: T, families: Mapping[str, Sequence[Group[T]]], only: Sequence[str], steps: Steps
) -> Iterator[tuple[str, list[Row]]]:
    """Measure the selected groups; yield each one's family and rows. These say why if it could not be measured."""
    for family, groups in families.items():
        for group in groups:
            if not only or {family, *group.metrics} & set(only):
                steps.say(f"== {', '.join(group.metrics)}")
                try:
                    yield family, group.measure(context)
                except SideFailed as error:
                    steps.say(str(error))
                    yield family, [unmeasured(metric, str(error).splitlines()[0]) for metric in group.metrics]


def parts_of(families: Mapping[str, Sequence[Group[Any]]]) -> Callable[[str], tuple[str, ...]]:
    """Return an argparse type for names of families and of their metrics; it raises ArgumentTypeError for others."""
    known = families.keys() | {metric for groups in families.values() for each in groups for metric in each.metrics}

    def read(text: str) -> tuple[str, ...]:
        chosen = tuple(filter(None, text.replace(",", " ").split()))
        unknown = [_unknown(name) for name in dict.fromkeys(chosen) if name not in known]
        if unknown or not chosen:
            told = "; ".join(unknown) or "names nothing"
            raise argparse.ArgumentTypeError(f"{told}; name families ({', '.join(families)}) or their metrics")
        return chosen

    return read


def _unknown(name: str) -> str:
    if name not in BY_METRIC:
        return f"{name} is neither a family nor a metric"
    program = "bench-scale" if BY_METRIC[name] in SCALE else "bench"
    return f"{name} is measured by `make {program}`"
