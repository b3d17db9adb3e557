"""The files of a mounted Secret or ConfigMap, read again as they change: what is new there needs no restart."""

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

    `read` makes it of the folder and its files by name, and raises a MintError that names the file. Where nothing
    else may go on, `broken` says what holds while they cannot be used. `on_change` is called when `now` is another.
    """

    def __init__(
        self,
        folder: Path,
        read: Callable[[Path, Files], T],
        *,
        broken: Callable[[MintError], T] | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Read it the first time. Raises MintError."""
        self._folder, self._read, self._broken, self._on_change = folder, read, broken, on_change
        real, files = _together(folder)
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
                    self._give_up(error)
                continue
            self._refused = ""
            if changed:
                _log.info("secret reloaded", folder=str(self._folder))
                self._on_change()

    def _give_up(self, error: MintError) -> None:
        if self._broken is None:
            _log.error("secret cannot be used; the previous one stays in effect", error=str(error))
            return
        self.now, self._seen = self._broken(error), b""
        self._on_change()

    def _look(self) -> bool:
        real, files = _together(self._folder)
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


def _together(folder: Path) -> tuple[Path, Files]:
    """Where the folder's files lie, and those of one moment: Kubernetes may take them away as they are read."""
    while True:
        real = _real(folder)
        try:
            files = files_of(real)
        except SourceNotFound:
            if _real(folder) == real:
                raise
        else:
            if _real(folder) == real:
                return real, files


def _digest(files: Files) -> bytes:
    """By which they are known again: what is secret in them is not kept here."""
    hasher = hashlib.sha256()
    for name, content in sorted(files.items()):
        hasher.update(f"{len(name)} {name} {len(content)} ".encode() + content)
    return hasher.digest()


def _real(folder: Path) -> Path:
    """Where files lie that belong together: Kubernetes changes them all at once, by pointing `..data` elsewhere."""
    data = folder / "..data"
    return data.resolve() if data.exists() else folder
