"""A folder of an object store that can be written: what appears in it is whole, and on disk when `put` returns.

Blocking: call from a worker thread. Raises SourceNotFound, SourceForbidden or SourceUnavailable.
What is read has a bound, which its size is held against before it is read: anybody may have put anything there.
"""

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol, cast

from mint_contracts.backends import backend
from mint_contracts.claims import local_path
from mint_contracts.errors import CorruptFile, SourceForbidden
from mint_contracts.source import WRITABLE, Location, Source, locate
from mint_contracts.storage_errors import os_errors, storage_errors, writing_errors

ABANDONED_S = 3600.0  # far longer than any write takes

_UNFINISHED = ".unfinished"


class ObjectStore(Protocol):
    """The files directly in one folder."""

    def names(self) -> list[str]:
        """Every file, sorted; none where the folder does not exist yet."""
        ...

    def read(self, name: str, most: int) -> bytes:
        """One file, whole. Raises CorruptFile where it has more than `most` bytes."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Write a file: nobody ever sees a part of it."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def tidy(self) -> None:
        """Remove what was left behind by writers that ended midway."""
        ...


def object_store(source: Source) -> ObjectStore:
    """The folder that a source names. Raises SourceForbidden for a scheme that cannot be written."""
    location = locate(source)
    subject = f"source {source.uri!r}"
    if location.scheme not in WRITABLE:
        raise SourceForbidden(subject, f"cannot be written; use {', '.join(f'{each}://' for each in WRITABLE)}")
    if location.is_local:
        return LocalStore(local_path(location)[0], subject)
    return RemoteStore(location, subject)


class LocalStore:
    """A folder of this machine, made with the first file."""

    def __init__(self, folder: Path, subject: str) -> None:
        self._folder, self._subject = folder, subject

    def names(self) -> list[str]:
        """Every file, sorted; files being written are left out."""
        with os_errors(self._subject), suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(self._folder) if not name.startswith("."))
        return []

    def read(self, name: str, most: int) -> bytes:
        """One file, whole."""
        with os_errors(self._subject), (self._folder / name).open("rb") as file:
            _check_size(os.fstat(file.fileno()).st_size, most, f"{self._subject} file {name!r}")
            return file.read(most)

    def put(self, name: str, content: bytes) -> None:
        """Write beside it, sync, rename, and sync the folder."""
        with writing_errors(self._subject):
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor, unfinished = tempfile.mkstemp(prefix=".", suffix=_UNFINISHED, dir=self._folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(unfinished, self._folder / name)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(unfinished)
                raise
            _sync(self._folder)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        with os_errors(self._subject), suppress(FileNotFoundError):
            os.unlink(self._folder / name)

    def tidy(self) -> None:
        """Remove unfinished files that are older than ABANDONED_S."""
        with os_errors(self._subject):
            for path in self._folder.glob(f".*{_UNFINISHED}"):
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > ABANDONED_S:
                        path.unlink()


class RemoteStore:
    """A folder of a bucket: one PUT makes one object, whole."""

    def __init__(self, location: Location, subject: str) -> None:
        self._scheme, self._subject = location.scheme, subject
        self._root = f"{location.host}/{location.path}".rstrip("/")

    def names(self) -> list[str]:
        """Every object directly below the folder, sorted."""
        with storage_errors(self._scheme, self._subject), suppress(FileNotFoundError):
            entries = backend(self._scheme).files.ls(self._root, detail=True)
            found = [entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]
            return sorted(name for name in found if name)
        return []

    def read(self, name: str, most: int) -> bytes:
        """One object, whole."""
        files, path, subject = backend(self._scheme).files, f"{self._root}/{name}", self._named(name)
        with storage_errors(self._scheme, subject):
            size = int(files.info(path)["size"])
            _check_size(size, most, subject)
            return cast(bytes, files.cat_file(path, start=0, end=size)) if size else b""

    def put(self, name: str, content: bytes) -> None:
        """Write one object."""
        with storage_errors(self._scheme, self._named(name)):
            backend(self._scheme).files.pipe_file(f"{self._root}/{name}", content)

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        with storage_errors(self._scheme, self._named(name)), suppress(FileNotFoundError):
            backend(self._scheme).files.rm_file(f"{self._root}/{name}")

    def tidy(self) -> None:
        """Nothing: what was not written whole is not there."""

    def _named(self, name: str) -> str:
        return f"{self._subject} file {name!r}"


def _check_size(size: int, most: int, subject: str) -> None:
    if size > most:
        raise CorruptFile(subject, f"has {size} bytes, and what belongs there at most {most}; move it elsewhere")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
