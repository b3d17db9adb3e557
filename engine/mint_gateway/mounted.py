"""The files of a mounted Secret, read again as they change: what is new there needs no restart."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from mint_contracts.errors import MintError, SourceForbidden, SourceNotFound, SourceUnavailable

LOOK_S = 2.0  # between two looks; Kubernetes itself takes a minute or so to bring what has changed

Files = Mapping[str, bytes]
T = TypeVar("T")

_log = structlog.get_logger()


class Mounted(Generic[T]):
    """What the files of a folder mean now. What can't be used when it comes is told, and what was before goes on.

    `read` makes it of the folder and its files by name, and raises a MintError that names the file.
    """

    def __init__(self, folder: Path, read: Callable[[Path, Files], T]) -> None:
        """Read it the first time. Raises MintError."""
        self._folder, self._read = folder, read
        real = _real(folder)
        files = files_of(real)
        self.now, self._seen = read(real, files), _digest(files)
        self._refused = ""

    async def run(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                changed = await asyncio.to_thread(self._look)
            except MintError as error:
                if self._refused != str(error):
                    self._refused = str(error)
                    _log.error("secret cannot be used; what was read before goes on", error=self._refused)
                continue
            self._refused = ""
            if changed:
                _log.info("secret is read anew", folder=str(self._folder))

    def _look(self) -> bool:
        real = _real(self._folder)
        files = files_of(real)
        digest = _digest(files)
        if digest == self._seen:
            return False
        self.now, self._seen = self._read(real, files), digest
        return True


def files_of(folder: Path) -> Files:
    """The folder's files by name, without what Kubernetes keeps there for itself. Raises MintError."""
    at = folder
    try:
        found = {}
        for at in sorted(folder.iterdir()):
            if not at.name.startswith("..") and at.is_file():
                found[at.name] = at.read_bytes()
    except FileNotFoundError:
        raise SourceNotFound(str(at), "does not exist") from None
    except PermissionError:
        raise SourceForbidden(str(at), "may not be read by the gateway's user; check its permissions") from None
    except OSError as error:
        raise SourceUnavailable(str(at), f"could not be read ({error.strerror})") from error
    return found


def _digest(files: Files) -> bytes:
    """By which they are known again: what is secret in them is not kept here."""
    told = hashlib.sha256()
    for name, content in sorted(files.items()):
        told.update(f"{len(name)} {name} {len(content)} ".encode() + content)
    return told.digest()


def _real(folder: Path) -> Path:
    """Where files lie that belong together: Kubernetes changes them all at once, by pointing `..data` elsewhere."""
    data = folder / "..data"
    return data.resolve() if data.exists() else folder
