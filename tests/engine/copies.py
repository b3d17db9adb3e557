"""Folders and models that many tests need: made once per process, then copied."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Hashable
from functools import cache
from pathlib import Path
from typing import Any

import torch

_FIRST: dict[str, Path] = {}
_SEED = 1789
_KEPT = 8


def put(folder: Path, made_of: str, make: Callable[[Path], object]) -> None:
    """Put into `folder` what `make` puts into a folder; an equal `made_of` must mean equal content.

    The random state afterwards is the same whether the content was made now or copied, so no test depends on which
    other test ran first.
    """
    if made_of not in _FIRST:
        first = Path(tempfile.mkdtemp(dir=_room().name))
        make(first)
        _FIRST[made_of] = first
    shutil.copytree(_FIRST[made_of], folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    torch.manual_seed(_SEED)


def digest(folder: Path) -> str:
    """A digest of a folder's file names and contents."""
    found = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        held = path.read_bytes()
        found.update(f"{path.relative_to(folder)}\0{len(held)}\0".encode())
        found.update(held)
    return found.hexdigest()


class Lately:
    """A cache of the models that were asked for most recently, keyed by what they are made of."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def get(self, made_of: Hashable, make: Callable[[], Any]) -> Any:
        """Return the shared model; a caller that changes it must copy it first."""
        found = self._made.pop(made_of, None)
        if found is None:
            found = make()
        self._made[made_of] = found
        for oldest in list(self._made)[:-_KEPT]:
            del self._made[oldest]
        return found


@cache
def _room() -> "tempfile.TemporaryDirectory[str]":
    """The folder that holds them; removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="made-once-")
