"""To come."""

from collections.abc import Iterator

from tests.bench.bench import Bench
from tests.bench.rows import Row


def measure(bench: Bench) -> Iterator[list[Row]]:
    yield from ()
