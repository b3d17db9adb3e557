"""Make all samples in a given folder: `python -m e2e.samples.making FOLDER` (`preparation` runs it and caches)."""

import shutil
import sys
from pathlib import Path
from typing import Final

from e2e.samples.base import SampleError, Say, convert, fetch_gguf
from e2e.samples.broken import write_broken
from e2e.samples.catalog import GOOD, TRAINED
from e2e.samples.layout import Samples
from e2e.samples.training import train
from e2e.samples.untrained import write_random

BROKEN_FROM: Final = "demo/random-8"


def make(samples: Samples, say: Say) -> None:
    """Fetch, convert, train and write everything into `samples.root`, which must not exist yet."""
    scratch = samples.root / "scratch"
    gguf = fetch_gguf(samples.base_gguf, scratch, say)
    shutil.rmtree(scratch)
    convert(gguf, samples.base, say)
    for adapter in GOOD:
        folder = samples.adapters / adapter.name
        if adapter.lesson is None:
            write_random(samples.base, adapter, folder)
        else:
            say(f"{adapter.name}: training rank {adapter.rank} on {', '.join(adapter.targets)}")
            train(samples.base, adapter, adapter.lesson, folder, say)
    write_broken(samples.adapters / BROKEN_FROM, samples.broken)
    say(f"adapters: {len(TRAINED)} trained, {len(GOOD) - len(TRAINED)} random, and the broken ones written")
    _readable_by_all(samples.root)


def _readable_by_all(root: Path) -> None:
    """Pods run as another user, and safetensors writes its files for the owner alone."""
    root.chmod(0o755)
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    try:
        make(Samples(Path(sys.argv[1])), print)
    except SampleError as error:
        sys.exit(str(error))
