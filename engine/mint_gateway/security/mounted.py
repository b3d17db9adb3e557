"""The files of a mounted Secret or ConfigMap, read again when they change, so that no restart is needed."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from mint_contracts.errors import MintError, SourceForbidden, SourceNotFound, SourceUnavailable

LOOK_S = 2.0  # polling interval; Kubernetes itself takes about a minute to deliver a change

TRIES = 20  # readings of a folder that changes meanwhile
PAUSE_S = 0.05  # between them

Files = Mapping[str, bytes]
T = TypeVar("T")

_log = structlog.get_logger()


class Mounted(Generic[T]):
    """The parsed content of a folder (`now`). Content that cannot be used is logged, and the previous one stays.

    `read` parses the folder's files, given by name, and raises a MintError that names the bad file. If the previous
    content must not stay in effect, `broken` returns what replaces it. `on_change` is called after `now` changed.
    """

    def __init__(
        self,
        folder: Path,
        read: Callable[[Path, Files], T],
        *,
        broken: Callable[[MintError], T] | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Read the folder for the first time. Raises MintError."""
        self._folder, self._read, self._broken, self._on_change = folder, read, broken, on_change
        real, files = _snapshot(folder)
        self.now, self._seen = read(real, files), _digest(files)
        self._refused = ""

    async def run(self) -> None:
        """Follow changes until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                changed = await asyncio.to_thread(self._look)
            except MintError as error:
                if self._refused != str(error):
                    self._refused = str(error)
                    self._handle_unusable(error)
                continue
            self._refused = ""
            if changed:
                _log.info("secret reloaded", folder=str(self._folder))
                self._on_change()

    def _handle_unusable(self, error: MintError) -> None:
        if self._broken is None:
            _log.error("secret cannot be used; the previous one stays in effect", error=str(error))
            return
        self.now, self._seen = self._broken(error), b""
        self._on_change()

    def _look(self) -> bool:
        real, files = _snapshot(self._folder)
        digest = _digest(files)
        if digest == self._seen:
            return False
        self.now, self._seen = self._read(real, files), digest
        return True


def files_of(folder: Path) -> Files:
    """Return the folder's files by name, without Kubernetes' own "..*" entries. Raises MintError."""
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


def _snapshot(folder: Path) -> tuple[Path, Files]:
    """Return the files' real folder and a consistent snapshot of them: Kubernetes may swap them during a read.

    Raises SourceUnavailable if they change during each of TRIES readings, and as `files_of` does.
    """
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_S)
        real = _real(folder)
        try:
            files = files_of(real)
        except SourceNotFound:
            if _real(folder) == real:
                raise
        else:
            if _real(folder) == real:
                return real, files
    raise SourceUnavailable(str(folder), "changes whenever it is read; check what writes it")


def _digest(files: Files) -> bytes:
    """Return a digest by which a change is noticed without keeping the secret contents."""
    hasher = hashlib.sha256()
    for name, content in sorted(files.items()):
        hasher.update(f"{len(name)} {name} {len(content)} ".encode() + content)
    return hasher.digest()


def _real(folder: Path) -> Path:
    """Return the folder of one version of the files: Kubernetes swaps them all at once by relinking `..data`."""
    data = folder / "..data"
    return data.resolve() if data.exists() else folder
