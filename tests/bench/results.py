"""Writing what was found, after every group, so that a run that is ended midway still leaves what it knows."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.bench.picture import picture
from tests.bench.places import RESULTS
from tests.bench.promises import BY_METRIC
from tests.bench.rows import Row


def write(name: str, title: str, rows: Sequence[Row], folder: Path = RESULTS) -> None:
    """`NAME.json`, a list of rows, and `NAME.svg` beside it; each replaced as a whole.

    What the file told of other metrics stays in it: who measures a part anew loses nothing of the rest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = {row.metric: row for row in (*_earlier(name, folder), *rows)}
    kept = [known[metric] for metric in BY_METRIC if metric in known]
    document = msgspec.json.format(msgspec.json.encode(kept), indent=2)
    _replace(folder / f"{name}.json", document + b"\n")
    _replace(folder / f"{name}.svg", picture(title, kept).encode())


def read(name: str, folder: Path) -> list[Row]:
    """The rows of an earlier run. Raises FileNotFoundError, and MsgspecError for a file that holds anything else."""
    return msgspec.json.decode((folder / f"{name}.json").read_bytes(), type=list[Row])


def _earlier(name: str, folder: Path) -> list[Row]:
    try:
        return read(name, folder)
    except (FileNotFoundError, msgspec.MsgspecError):  # none that could be kept: what took an hour to measure is told
        return []


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_suffix(f"{path.suffix}.unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
