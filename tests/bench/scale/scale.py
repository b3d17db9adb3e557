"""The context that every family of the scale benchmark gets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from e2e.cluster.progress import Steps
from tests.bench import parts
from tests.bench.places import scratch
from tests.redis_process import RedisProcess


@dataclass(frozen=True)
class Scale:
    """One invocation: its size, the number of rounds, and the progress display."""

    quick: bool  # a hundredth of everything: tries the machinery, measures nothing
    rounds: int
    steps: Steps

    def size(self, full: int) -> int:
        """Return `full`, or a hundredth of it in a quick run."""
        return max(1, full // 100) if self.quick else full

    @contextmanager
    def redis(self, *options: str) -> Iterator[RedisProcess]:
        """Run a separate redis-server for a measurement."""
        with scratch("redis") as folder, RedisProcess(folder, *options) as process:
            yield process


Group = parts.Group[Scale]
