"""The store in which policies outlive their engine: a local folder, a claim's volume or a bucket's prefix.

Paths are relative to the store. A file is there completely or not at all, and is durable once `write` returns.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from mint_contracts.backends import backend
from mint_contracts.claims import local_path
from mint_contracts.durable import publish, sync
from mint_contracts.errors import CapacityExceeded, SourceForbidden, SourceUnavailable
from mint_contracts.source import WRITABLE, Location, Source, locate
from mint_contracts.storage_errors import lacks_bucket, os_errors, storage_errors, volume_full
from mint_engine.policies.stored.writing import write_along

PARTIAL = ".partial"
_MORE_TRIES = 8  # to remove a folder that others write into, each by one call at a time


class HeadLast(NamedTuple):
    """A file whose first bytes depend on the rest: `head` is called only once the rest is being written."""

    head_bytes: int
    head: Callable[[], bytes]
    rest: memoryview


Content = bytes | bytearray | HeadLast


class Store(Protocol):
    """Durable files by path. All methods block the calling thread.

    They raise SourceForbidden, SourceUnavailable, Overloaded (disk full) and SourceNotFound.
    """

    source: Source

    def write(self, path: str, content: Content) -> None:
        """Write a file, replacing any existing one."""
        ...

    def read(self, path: str, limit: int | None) -> bytes:
        """Return a file's content. Raises CapacityExceeded for more than `limit` bytes, before allocating them."""
        ...

    def names(self, path: str) -> list[str]:
        """Return the sorted names of what lies directly in a folder; none if it does not exist."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file, or a folder and all in it; does nothing if it does not exist."""
        ...


def store_of(source: Source) -> Store:
    """Return the store at a source. Raises SourceForbidden if it cannot be written."""
    location = locate(source)
    if location.scheme not in WRITABLE:
        raise SourceForbidden(f"store {source.uri!r}", f"cannot be written; use {', '.join(WRITABLE)}")
    if location.is_local:
        folder, claim = local_path(location)
        return LocalStore(source, folder, claim or folder)
    return BucketStore(source, location)


class LocalStore:
    """A folder on a file system that keeps synced data and renames atomically.

    `mounted` is this folder or one above it that somebody else has created. While it does not exist, the store's
    content is unknown, and nothing is written, since that would be hidden once the volume is mounted.
    """

    def __init__(self, source: Source, root: Path, mounted: Path) -> None:
        self.source = source
        self._root, self._mounted, self._subject = root, mounted, f"store {source.uri!r}"

    def write(self, path: str, content: Content) -> None:
        """Write under a name that readers ignore, then rename."""
        target = self._root / path
        with self._errors("written"):
            self._check_mounted()
            _make_folder(target.parent)
            partial = _partial(target)
            try:
                _write(partial, content)
                publish(partial, target)
            except BaseException:  # or the partial file would keep a full volume full
                with suppress(OSError):
                    partial.unlink()
                raise

    def read(self, path: str, limit: int | None) -> bytes:
        """Return the complete file."""
        with self._errors(), (self._root / path).open("rb") as file:
            _check_size(os.fstat(file.fileno()).st_size, limit, f"{self._subject} file {path!r}")
            return file.read()

    def names(self, path: str) -> list[str]:
        """Leave out files that are still being written."""
        with self._errors():
            try:
                return sorted(name for name in os.listdir(self._root / path) if not name.endswith(PARTIAL))
            except (FileNotFoundError, NotADirectoryError):
                self._check_mounted()
                return []

    def delete(self, path: str) -> None:
        """Remove durably and at once: concurrent writers find the folder gone, and cannot prevent its removal.

        Others may be removing the same file or folder, or one above it.
        """
        target = self._root / path
        with self._errors("written"):
            gone = _partial(target)
            try:
                target.rename(gone)
                sync(target.parent)
            except (FileNotFoundError, NotADirectoryError):
                self._check_mounted()
                return
            _remove(gone)

    @contextmanager
    def _errors(self, did: str = "read") -> Iterator[None]:
        with os_errors(self._subject, did):
            try:
                yield
            except OSError as error:
                if isinstance(error, FileNotFoundError):
                    self._check_mounted()
                raise volume_full(error, self._subject) or error from error

    def _check_mounted(self) -> None:
        if not self._mounted.is_dir():
            reason = f"its folder {str(self._mounted)!r} does not exist; mount its volume, or create it; retrying"
            raise SourceUnavailable(self._subject, reason)


def _partial(target: Path) -> Path:
    """Return a unique sibling name that readers ignore; random, since pods on one claim may share process ids."""
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}{PARTIAL}")


def _write(file: Path, content: Content) -> None:
    with file.open("xb", buffering=0) as out:
        if not isinstance(content, HeadLast):
            write_along(out.fileno(), memoryview(content))
            return
        out.seek(content.head_bytes)
        write_along(out.fileno(), content.rest)
        os.fsync(out.fileno())  # before the head, which may still be computed
        out.seek(0)
        write_along(out.fileno(), memoryview(content.head()))


def _remove(gone: Path) -> None:
    """Remove what was renamed away. Writers that had opened it may still add or rename a last file: try again."""
    for last in (*[False] * _MORE_TRIES, True):
        try:
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
        except OSError as error:
            if last or error.errno not in {errno.ENOTEMPTY, errno.ENOENT}:
                raise
        else:
            return


class BucketStore:
    """A bucket's prefix; assumes that objects become visible when their upload ends and listings are never stale."""

    def __init__(self, source: Source, location: Location) -> None:
        self.source = source
        self._scheme = location.scheme
        self._root, self._subject = f"{location.host}/{location.path}".rstrip("/"), f"store {source.uri!r}"

    def write(self, path: str, content: Content) -> None:
        """Write by one upload."""
        data = b"".join((content.head(), content.rest)) if isinstance(content, HeadLast) else content
        with storage_errors(self._scheme, self._named(path)):
            backend(self._scheme).files.pipe_file(self._at(path), data)

    def read(self, path: str, limit: int | None) -> bytes:
        """Read by one download, of at most one byte more than `limit`."""
        files = backend(self._scheme).files
        with storage_errors(self._scheme, self._named(path)):
            end = int(files.info(self._at(path))["size"]) if limit is None else limit + 1
            data: bytes = files.cat_file(self._at(path), start=0, end=end) if end else b""
        _check_size(len(data), limit, self._named(path))
        return data

    def names(self, path: str) -> list[str]:
        """Return the names of objects and of common prefixes, which look like folders."""
        with storage_errors(self._scheme, self._subject):
            try:
                found = backend(self._scheme).files.ls(self._at(path), detail=False)
            except FileNotFoundError as error:
                if lacks_bucket(error):
                    raise
                return []
        own = self._at(path).rstrip("/")
        return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in found if name.rstrip("/") != own})

    def delete(self, path: str) -> None:
        """Remove every object below the path."""
        with storage_errors(self._scheme, self._named(path)):
            try:
                backend(self._scheme).files.rm(self._at(path), recursive=True)
            except FileNotFoundError:
                return

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _named(self, path: str) -> str:
        return f"{self._subject} file {path!r}"


def _make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, each durable before what it holds."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        try:
            each.mkdir(exist_ok=True)
        except FileExistsError:
            if each.is_file():
                raise  # otherwise others made and removed it: the write into it reports that
        sync(each.parent)


def _check_size(size: int, limit: int | None, subject: str) -> None:
    if limit is not None and size > limit:
        raise CapacityExceeded(subject, f"has more than {limit} bytes")
