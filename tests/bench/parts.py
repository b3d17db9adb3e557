"""Selecting what a benchmark measures: families or single metrics, as named by `--only`."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tests.bench.promises import BY_METRIC, SCALE


class Measuring(Protocol):
    """A group of promises that are measured together."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The promises' names."""
        ...


def parts_of(families: Mapping[str, Sequence[Measuring]]) -> Callable[[str], tuple[str, ...]]:
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
