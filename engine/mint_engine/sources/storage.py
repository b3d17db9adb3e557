"""https://, s3://, gs:// and hf:// sources: list and open."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, Protocol, cast

import msgspec
from fsspec.spec import AbstractFileSystem

from mint_contracts.backends import backend, commit_of
from mint_contracts.claims import local_path
from mint_contracts.errors import SourceUnavailable
from mint_contracts.source import Location, Source, locate
from mint_contracts.storage_errors import cause_of, storage_errors
from mint_engine.sources.local import LocalFolder

BLOCK_BYTES = 8 << 20

# What stores tell of a file that changes with its content, beside what HTTP has for that.
_MARKS = ("VersionId", "generation", "etag", "md5Hash", "blob_id", "xet_hash")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Folder(Protocol):
    """Where a source's files lie. `subject` names it in errors."""

    subject: str

    def files(self, *names: str) -> dict[str, int | None]:
        """Files directly in it, with bytes where known; only `names` are looked for where nothing can be listed."""
        ...

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A context manager of one file, opened for reading bytes."""
        ...


def subject_of(source: Source) -> str:
    """How errors name a source."""
    return f"source {source.uri!r}" + (f" at {source.revision!r}" if source.revision else "")


def folder_of(source: Source) -> Folder:
    """The folder that a source names; looked at only when listed or opened. Raises SourceForbidden."""
    location = locate(source)
    subject = subject_of(source)
    if location.is_local:
        path, fence = local_path(location)
        return LocalFolder(path, subject, fence=fence)
    return remote_folder(source)


def remote_folder(source: Source) -> "RemoteFolder":
    """The folder of a source that is not on this machine. Raises SourceForbidden."""
    return RemoteFolder(locate(source), source.revision, subject_of(source))


class NoRanges(Exception):
    """The server sends files whole and no part of them, or this one is not any more what was begun with."""


class About(msgspec.Struct, frozen=True):
    """What a store tells of a file."""

    size: int | None
    mark: str  # tells its content from any other; "": nothing does
    sha256: str = ""
    validator: str = ""  # of a web server: each block is asked for on condition of it


class RemoteFolder:
    """A folder of an object store, a hub or a web server."""

    def __init__(self, location: Location, revision: str, subject: str) -> None:
        self.subject = subject
        self._location = location
        self._revision = revision
        self._root = ""

    def files(self, *names: str) -> dict[str, int | None]:
        """Files directly in the folder. Raises SourceNotFound, SourceForbidden or SourceUnavailable."""
        with storage_errors(self._location.scheme, self.subject):
            files, root = backend(self._location.scheme).files, self._resolved_root()
            if self._web:
                return _probe(files, root, names)
            entries = files.ls(root, detail=True)
        found = {e["name"].rsplit("/", 1)[-1]: e.get("size") for e in entries if e["type"] == "file"}
        return {name: None if size is None else int(size) for name, size in found.items()}

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """One file for reading from its start to its end, in blocks. Maps errors while it is read too."""
        with storage_errors(self._location.scheme, self.subject):
            path = f"{self._resolved_root()}/{name}"
            opened = backend(self._location.scheme).files.open(
                path, "rb", block_size=BLOCK_BYTES, cache_type="readahead"
            )
            with opened as file:
                yield cast(BinaryIO, file)

    def about(self, name: str) -> About:
        """What the store tells of one of its files now. Raises as `files` does.

        Only web servers are asked for blocks of that very content. A bucket's blocks may be of what it was given
        since: ask again after the last one.
        """
        with storage_errors(self._location.scheme, self.subject):
            told = backend(self._location.scheme).files.info(f"{self._resolved_root()}/{name}")
        etag = str(told.get("ETag") or "")
        strong = "" if etag.startswith("W/") else etag  # a weak one is of contents that differ in bytes
        known = strong or str(told.get("Last-Modified") or "")
        marks = [known, *[f"{key}={told[key]}" for key in _MARKS if told.get(key)]]
        size, lfs = told.get("size"), told.get("lfs") or {}
        mark = ";".join([*marks, f"{size}"]) if any(marks) else ""
        return About(size, mark, lfs.get("sha256", ""), known if self._web else "")

    @contextmanager
    def open_at(self, name: str, start: int, about: About, *, in_blocks: bool) -> Iterator[BinaryIO]:
        """One file for reading from `start` on, as long as it is what `about` tells.

        Without `in_blocks` it comes at one go, from its start. Raises NoRanges, and errors as `open` does.
        """
        web = self._web
        headers = {"headers": {"If-Range": about.validator}} if in_blocks and about.validator else {}
        with storage_errors(self._location.scheme, self.subject):
            opened = backend(self._location.scheme).files.open(
                f"{self._resolved_root()}/{name}",
                "rb",
                block_size=BLOCK_BYTES if in_blocks or not web else 0,
                cache_type="readahead",
                **headers,
            )
            with opened as file:
                try:
                    if start:
                        file.seek(start)
                    yield cast(BinaryIO, file)
                except ValueError as error:  # all that fsspec tells of it
                    if not web:
                        raise
                    raise NoRanges from error

    @property
    def _web(self) -> bool:
        return self._location.scheme in {"http", "https"}

    def _resolved_root(self) -> str:
        """The folder's path for its filesystem; of hf:// with the commit that the revision names now, asked once."""
        if not self._root:
            here = self._location
            if self._web:
                self._root = f"{here.scheme}://{here.host}/{here.path}".rstrip("/")
            elif here.scheme == "hf":
                name, _, path = here.path.partition("/")
                repository = f"{here.host}/{name}"
                self._root = f"{repository}@{self._commit(repository)}/{path}".rstrip("/")
            else:
                self._root = f"{here.host}/{here.path}".rstrip("/")
        return self._root

    def _commit(self, repository: str) -> str:
        if _COMMIT.fullmatch(self._revision):
            return self._revision
        commit = commit_of(repository, self._revision)
        if not commit or not _COMMIT.fullmatch(commit):
            raise SourceUnavailable(self.subject, "the hub named no commit for the revision; retrying")
        return commit


def _probe(files: AbstractFileSystem, root: str, names: tuple[str, ...]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for name in names:
        try:
            size = files.info(f"{root}/{name}").get("size")
        except FileNotFoundError as error:
            if cause_of(error) is not error:
                raise
            continue
        found[name] = None if size is None else int(size)
    return found
