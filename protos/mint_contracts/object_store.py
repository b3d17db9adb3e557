"""A writable folder of an object store: files appear only complete, and are durable when `put` returns.

Blocking: call from a worker thread. Raises SourceNotFound, SourceForbidden or SourceUnavailable.
A file's size is checked against a limit before it is read: anybody may have put anything there.
"""

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol, cast

from mint_contracts.backends import backend
from mint_contracts.claims import local_path
from mint_contracts.durable import publish
from mint_contracts.errors import CorruptFile, SourceForbidden
from mint_contracts.source import WRITABLE, Location, Source, locate
from mint_contracts.storage_errors import lacks_bucket, os_errors, storage_errors, writing_errors

ABANDONED_S = 3600.0  # far longer than any write takes

_UNFINISHED = ".unfinished"


class ObjectStore(Protocol):
    """The files directly in one folder."""

    def names(self) -> list[str]:
        """Return the names of all files, sorted; none if the folder does not exist yet."""
        ...

    def read(self, name: str, most: int) -> bytes:
        """Read one file completely. Raises CorruptFile if it has more than `most` bytes."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Write a file atomically: readers see all of it or nothing."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def tidy(self) -> None:
        """Remove files left behind by writers that ended midway."""
        ...


def object_store(source: Source) -> ObjectStore:
    """Return the folder that a source names. Raises SourceForbidden for a scheme that cannot be written."""
    location = locate(source)
    subject = f"source {source.uri!r}"
    if location.scheme not in WRITABLE:
        raise SourceForbidden(subject, f"cannot be written; use {', '.join(f'{each}://' for each in WRITABLE)}")
    if location.is_local:
        return LocalStore(local_path(location)[0], subject)
    return RemoteStore(location, subject)


class LocalStore:
    """A folder on this machine, created with its first file."""

    def __init__(self, folder: Path, subject: str) -> None:
        self._folder, self._subject = folder, subject

    def names(self) -> list[str]:
        """Return the names of all files, sorted, without those being written."""
        with os_errors(self._subject), suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(self._folder) if not name.startswith("."))
        return []

    def read(self, name: str, most: int) -> bytes:
        """Read one file completely."""
        with os_errors(self._subject), (self._folder / name).open("rb") as file:
            _check_size(os.fstat(file.fileno()).st_size, most, f"{self._subject} file {name!r}")
            return file.read(most)

    def put(self, name: str, content: bytes) -> None:
        """Write to a temporary file, sync and rename it, and sync the folder."""
        with writing_errors(self._subject):
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor, unfinished = tempfile.mkstemp(prefix=".", suffix=_UNFINISHED, dir=self._folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                publish(Path(unfinished), self._folder / name)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(unfinished)
                raise

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
    """A folder of a bucket: one PUT makes one complete object."""

    def __init__(self, location: Location, subject: str) -> None:
        self._scheme, self._subject = location.scheme, subject
        self._root = f"{location.host}/{location.path}".rstrip("/")

    def names(self) -> list[str]:
        """Return the names of all objects directly below the folder, sorted."""
        with storage_errors(self._scheme, self._subject):
            try:
                entries = backend(self._scheme).files.ls(self._root, detail=True)
            except FileNotFoundError as error:
                if lacks_bucket(error):
                    raise
                return []
        found = [entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]
        return sorted(name for name in found if name)

    def read(self, name: str, most: int) -> bytes:
        """Read one object completely."""
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
        """Do nothing: an object that was not written completely does not exist."""

    def _named(self, name: str) -> str:
        return f"{self._subject} file {name!r}"


def _check_size(size: int, most: int, subject: str) -> None:
    if size > most:
        raise CorruptFile(subject, f"has {size} bytes, and what belongs there at most {most}; move it elsewhere")
