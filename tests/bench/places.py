"""Where benchmarks keep files: results in the checkout; models, adapters and peers in the cache."""

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
    """Return the folder of files that are made once and reused by later runs."""
    folder = cache_folder() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return `folder`, first filled by `make(unfinished)` if it is absent; it appears only when complete."""
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
    """Yield a temporary folder on the cache's disk."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=bench_cache()) as folder:
        yield Path(folder)
