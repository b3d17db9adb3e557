"""What tests make again and again, folders and models: made once in a process, and copied from then on."""

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
    """Into `folder` what `make` puts into a folder; of the same it is `made_of` the same.

    Whoever draws random numbers after that draws the same ones, whether it was made now or copied: no test depends on
    which other came first.
    """
    if made_of not in _FIRST:
        first = Path(tempfile.mkdtemp(dir=_room().name))
        make(first)
        _FIRST[made_of] = first
    shutil.copytree(_FIRST[made_of], folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    torch.manual_seed(_SEED)


def digest(folder: Path) -> str:
    """Of all that a folder's files hold, and of their names."""
    found = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        held = path.read_bytes()
        found.update(f"{path.relative_to(folder)}\0{len(held)}\0".encode())
        found.update(held)
    return found.hexdigest()


class Lately:
    """Models, by what they are made of: the last few that were asked for."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def get(self, made_of: Hashable, make: Callable[[], Any]) -> Any:
        """The one and only: who changes it takes a copy."""
        found = self._made.pop(made_of, None)
        if found is None:
            found = make()
        self._made[made_of] = found
        for oldest in list(self._made)[:-_KEPT]:
            del self._made[oldest]
        return found


@cache
def _room() -> "tempfile.TemporaryDirectory[str]":
    """Where they lie; gone with the process."""
    return tempfile.TemporaryDirectory(prefix="made-once-")
