"""Where benchmarks keep what they make: results in the checkout, models, adapters and peers in the cache."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.cache import cache_folder
from e2e.cluster.paths import REPOSITORY

RESULTS = REPOSITORY / "build" / "bench"
LOGS = RESULTS / "logs"


def bench_cache() -> Path:
    """What outlives a run: made once, found again."""
    folder = cache_folder() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make(unfinished)` if it is not there; it appears only when complete."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            make(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A folder on the cache's disk that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=bench_cache()) as folder:
        yield Path(folder)
