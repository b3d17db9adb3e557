"""Where policies outlive their engine: a folder of this machine's or a claim's, or a bucket's prefix.

Paths are relative to the store. A file is there whole or not at all, and once `write` returns it stays.
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
from mint_contracts.errors import CapacityExceeded, SourceForbidden, SourceUnavailable
from mint_contracts.source import WRITABLE, Location, Source, locate
from mint_contracts.storage_errors import os_errors, storage_errors, volume_full
from mint_engine.policies.writing import write_along
from mint_engine.sources.copying import publish, sync

PARTIAL = ".partial"
_MORE_TRIES = 8  # to remove a folder that others write into: each has but one call under way


class HeadLast(NamedTuple):
    """A file whose first bytes tell of the rest: they are asked for when that is on its way."""

    head_bytes: int
    head: Callable[[], bytes]
    rest: memoryview


Content = bytes | bytearray | HeadLast


class Store(Protocol):
    """Blocks its thread. Raises SourceForbidden, SourceUnavailable, Overloaded (disk full), SourceNotFound."""

    source: Source

    def write(self, path: str, content: Content) -> None:
        """Put a file there, in place of what was."""
        ...

    def read(self, path: str, limit: int | None) -> bytes:
        """A file's content. Raises CapacityExceeded above `limit` bytes, before it takes memory for them."""
        ...

    def names(self, path: str) -> list[str]:
        """What lies directly in a folder, sorted; nothing where there is none."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file, or a folder and all in it; nothing where there is none."""
        ...


def store_of(source: Source) -> Store:
    """The store at a source. Raises SourceForbidden for one that can't be written."""
    location = locate(source)
    if location.scheme not in WRITABLE:
        raise SourceForbidden(f"store {source.uri!r}", f"cannot be written; use {', '.join(WRITABLE)}")
    if location.is_local:
        folder, claim = local_path(location)
        return LocalStore(source, folder, claim or folder)
    return BucketStore(source, location)


class LocalStore:
    """A folder, on a file system that keeps what was synced and renames at once.

    `mounted` is it, or a folder above it, that somebody else has made: where that is not there nothing is known of
    what the store holds, and nothing written that would be nowhere once it is.
    """

    def __init__(self, source: Source, root: Path, mounted: Path) -> None:
        self.source = source
        self._root, self._mounted, self._subject = root, mounted, f"store {source.uri!r}"

    def write(self, path: str, content: Content) -> None:
        """By way of a name that no reader looks at."""
        target = self._root / path
        with self._errors():
            self._check_mounted()
            _make_folder(target.parent)
            partial = _partial(target)
            try:
                _write(partial, content)
                publish(partial, target)
            except BaseException:  # a volume that is full would stay so by the very file that found no room there
                with suppress(OSError):
                    partial.unlink()
                raise

    def read(self, path: str, limit: int | None) -> bytes:
        """The whole file."""
        with self._errors(), (self._root / path).open("rb") as file:
            _check_size(os.fstat(file.fileno()).st_size, limit, f"{self._subject} file {path!r}")
            return file.read()

    def names(self, path: str) -> list[str]:
        """Without what is only half written."""
        with self._errors():
            try:
                return sorted(name for name in os.listdir(self._root / path) if not name.endswith(PARTIAL))
            except (FileNotFoundError, NotADirectoryError):
                self._check_mounted()
                return []

    def delete(self, path: str) -> None:
        """For good, too, and at once: who writes into a folder meanwhile finds it gone, and keeps nobody from it.

        Somebody else may be removing the same, or the folder that it is in, which then goes with all in it.
        """
        target = self._root / path
        with self._errors():
            gone = _partial(target)
            try:
                target.rename(gone)
                sync(target.parent)
            except (FileNotFoundError, NotADirectoryError):
                self._check_mounted()
                return
            _remove(gone)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with os_errors(self._subject):
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
    """A name beside it that no reader looks at, and nobody else has: pods on one claim may share process numbers."""
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}{PARTIAL}")


def _write(file: Path, content: Content) -> None:
    with file.open("xb", buffering=0) as out:
        if not isinstance(content, HeadLast):
            write_along(out.fileno(), memoryview(content))
            return
        out.seek(content.head_bytes)
        write_along(out.fileno(), content.rest)
        os.fsync(out.fileno())  # the head may not be known yet
        out.seek(0)
        write_along(out.fileno(), memoryview(content.head()))


def _remove(gone: Path) -> None:
    """Nobody finds it any more; but who had found it may just be putting a last file in, or giving it its name."""
    for last in (*[False] * _MORE_TRIES, True):
        try:
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
        except OSError as error:
            if last or error.errno not in {errno.ENOTEMPTY, errno.ENOENT}:
                raise
        else:
            return


class BucketStore:
    """A prefix of a bucket: an object is visible when its upload has ended, and listings are never stale."""

    def __init__(self, source: Source, location: Location) -> None:
        self.source = source
        self._scheme = location.scheme
        self._root, self._subject = f"{location.host}/{location.path}".rstrip("/"), f"store {source.uri!r}"

    def write(self, path: str, content: Content) -> None:
        """One upload."""
        data = b"".join((content.head(), content.rest)) if isinstance(content, HeadLast) else content
        with storage_errors(self._scheme, self._named(path)):
            backend(self._scheme).files.pipe_file(self._at(path), data)

    def read(self, path: str, limit: int | None) -> bytes:
        """One download, of one byte more than the limit at most."""
        files = backend(self._scheme).files
        with storage_errors(self._scheme, self._named(path)):
            end = int(files.info(self._at(path))["size"]) if limit is None else limit + 1
            data: bytes = files.cat_file(self._at(path), start=0, end=end) if end else b""
        _check_size(len(data), limit, self._named(path))
        return data

    def names(self, path: str) -> list[str]:
        """Of objects and of what looks like folders."""
        with storage_errors(self._scheme, self._subject):
            try:
                found = backend(self._scheme).files.ls(self._at(path), detail=False)
            except FileNotFoundError:
                return []
        own = self._at(path).rstrip("/")
        return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in found if name.rstrip("/") != own})

    def delete(self, path: str) -> None:
        """Every object below."""
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
    """A folder, and those above it, each there for good before what it holds."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        try:
            each.mkdir(exist_ok=True)
        except FileExistsError:
            if each.is_file():
                raise  # or others have made and removed it just now: who writes into it is told so
        sync(each.parent)


def _check_size(size: int, limit: int | None, subject: str) -> None:
    if limit is not None and size > limit:
        raise CapacityExceeded(subject, f"has more than {limit} bytes")
