"""What tells two copies of a base apart without reading all of it, which no node of several would have time for."""

import hashlib
import os
from pathlib import Path

from mint_contracts.errors import SourceUnavailable
from mint_engine.sources.fetch_base import SUFFIXES, without_ggufs

SMALL = 1 << 24  # of a file that is read whole: configurations, tokenizers, indices
SAMPLES, SAMPLE = 256, 4096  # of a larger one, evenly over all of it, its first and last bytes among them


def base_digest(path: Path) -> str:
    """Of the files of a base, a folder or one file: their names and sizes, small ones whole, samples of large ones.

    Bases that were trained differ in nearly every number, and so in any sample. Raises SourceUnavailable.
    """
    try:
        return _digest(path)
    except OSError as error:
        raise SourceUnavailable(f"base {path}", f"cannot be read ({error}); retrying") from error


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    for file in [path] if path.is_file() else _files(path):
        with file.open("rb", buffering=0) as opened:
            size = os.fstat(opened.fileno()).st_size
            found.update(f"{file.name}\0{size}\n".encode())
            for start, length in _places(size):
                found.update(os.pread(opened.fileno(), length, start))
    return found.hexdigest()


def _files(folder: Path) -> list[Path]:
    names = without_ggufs([each.name for each in folder.iterdir()])  # of which an earlier version had copies made
    return [folder / name for name in sorted(names) if name.endswith(SUFFIXES)]


def _places(size: int) -> list[tuple[int, int]]:
    if size <= SMALL:
        return [(0, size)]
    last = size - SAMPLE
    return [(last * number // (SAMPLES - 1), SAMPLE) for number in range(SAMPLES)]
