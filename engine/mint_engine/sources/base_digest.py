"""A digest that distinguishes bases without reading all of their weights, for which nodes would have no time."""

import hashlib
import os
from pathlib import Path

from mint_contracts.errors import SourceUnavailable
from mint_engine.sources.fetch_base import SUFFIXES, without_ggufs

SMALL = 1 << 24  # the most bytes of a file that is read completely: configurations, tokenizers, indices
SAMPLES, SAMPLE = 256, 4096  # of a larger file: number and bytes, spread evenly from its first to its last bytes


def base_digest(path: Path) -> str:
    """Return a digest of a base, a folder or one file: file names and sizes, small files, samples of large files.

    Bases with different training differ in nearly every number, and so in any sample. Raises SourceUnavailable.
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
    names = without_ggufs([each.name for each in folder.iterdir()])  # which an earlier version copied, too
    return [folder / name for name in sorted(names) if name.endswith(SUFFIXES)]


def _places(size: int) -> list[tuple[int, int]]:
    if size <= SMALL:
        return [(0, size)]
    last = size - SAMPLE
    return [(last * number // (SAMPLES - 1), SAMPLE) for number in range(SAMPLES)]
