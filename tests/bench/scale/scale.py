"""What every family of the scale benchmark is given."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from e2e.cluster.progress import Steps
from tests.bench.places import scratch
from tests.bench.rows import Row
from tests.redis_process import RedisProcess


@dataclass(frozen=True)
class Scale:
    """One invocation: how big, how often, and whom to tell how it goes."""

    quick: bool  # a hundredth of everything: tries the machinery, measures nothing
    rounds: int
    steps: Steps

    def size(self, full: int) -> int:
        """How many of something that there are `full` of when it counts."""
        return max(1, full // 100) if self.quick else full

    @contextmanager
    def redis(self, *options: str) -> Iterator[RedisProcess]:
        """A redis-server of a measurement's own."""
        with scratch("redis") as folder, RedisProcess(folder, *options) as process:
            yield process


class Group(NamedTuple):
    """Promises that are measured together."""

    metrics: tuple[str, ...]
    measure: Callable[[Scale], list[Row]]
