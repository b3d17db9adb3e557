"""Writing what was found, after every group, so that a run that is ended midway still leaves what it knows."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.bench.picture import picture
from tests.bench.places import RESULTS
from tests.bench.rows import Row


def write(family: str, title: str, rows: Sequence[Row], folder: Path = RESULTS) -> None:
    """`FAMILY.json`, a list of rows, and `FAMILY.svg` beside it; each replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    document = msgspec.json.format(msgspec.json.encode(rows), indent=2)
    _replace(folder / f"{family}.json", document + b"\n")
    _replace(folder / f"{family}.svg", picture(title, rows).encode())


def read(family: str, folder: Path = RESULTS) -> list[Row]:
    """The rows of an earlier run."""
    return msgspec.json.decode((folder / f"{family}.json").read_bytes(), type=list[Row])


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_suffix(f"{path.suffix}.unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
