"""Writing results after every group, so that an interrupted run still leaves what it has measured."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.bench.picture import picture
from tests.bench.places import RESULTS
from tests.bench.promises import BY_METRIC
from tests.bench.rows import Row


def write(name: str, title: str, rows: Sequence[Row], folder: Path = RESULTS) -> None:
    """Write `NAME.json`, a list of rows, and `NAME.svg`; each is replaced atomically.

    The file's rows of other metrics stay, so measuring a part again loses nothing of the rest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = {row.metric: row for row in (*_earlier(name, folder), *rows)}
    kept = [known[metric] for metric in BY_METRIC if metric in known]
    document = msgspec.json.format(msgspec.json.encode(kept), indent=2)
    _replace(folder / f"{name}.json", document + b"\n")
    _replace(folder / f"{name}.svg", picture(title, kept).encode())


def read(name: str, folder: Path) -> list[Row]:
    """Return an earlier run's rows. Raises FileNotFoundError, or MsgspecError if the file holds anything else."""
    return msgspec.json.decode((folder / f"{name}.json").read_bytes(), type=list[Row])


def _earlier(name: str, folder: Path) -> list[Row]:
    try:
        return read(name, folder)
    except (FileNotFoundError, msgspec.MsgspecError):  # nothing to keep; must not lose new results that took an hour
        return []


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_suffix(f"{path.suffix}.unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
