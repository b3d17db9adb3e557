"""Listing and opening the files of sources, chiefly https://, s3://, gs:// and hf:// ones."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from http import HTTPStatus
from os.path import commonprefix
from typing import Any, BinaryIO, Protocol, cast

import msgspec
from fsspec.asyn import sync
from fsspec.spec import AbstractFileSystem

from mint_contracts.backends import backend, commit_of
from mint_contracts.claims import local_path
from mint_contracts.errors import SourceUnavailable
from mint_contracts.hub import Place, place_of
from mint_contracts.source import Location, Source, locate
from mint_contracts.storage_errors import cause_of, lacks_bucket, status_of, storage_errors
from mint_engine.sources.local import LocalFolder
from mint_engine.sources.web_stream import WebStream

BLOCK_BYTES = 8 << 20
FEW = 3  # files, as an adapter may have

# Attributes that stores report and that change with a file's content, beside HTTP's own.
_MARKS = ("VersionId", "generation", "etag", "md5Hash", "blob_id", "xet_hash")
FileInfo = Mapping[str, Any]  # fsspec's info of a file

_ABSENT = "absent.mint"  # which no folder has; many servers refuse every name that begins with a dot

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Folder(Protocol):
    """The folder of a source's files. `subject` names it in errors."""

    subject: str

    def files(self, *names: str) -> dict[str, int | None]:
        """Return the files directly in it, with sizes if known; others than `names` may be missing."""
        ...

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Return a context manager that opens one file for reading bytes."""
        ...

    def check_same(self, *names: str) -> None:
        """Raise SourceUnavailable if any of these has visibly changed since `files` last listed it.

        Call it after all of them were read, to know that their contents belong together.
        """
        ...


def subject_of(source: Source) -> str:
    """Return the name of a source for errors."""
    return f"source {source.uri!r}" + (f" at {source.revision!r}" if source.revision else "")


def folder_of(source: Source) -> Folder:
    """Return the folder that a source names; it is accessed only when listed or opened. Raises SourceForbidden."""
    location = locate(source)
    subject = subject_of(source)
    if location.is_local:
        path, fence = local_path(location)
        return LocalFolder(path, subject, fence=fence)
    return remote_folder(source)


def remote_folder(source: Source) -> "RemoteFolder":
    """Return the folder of a source that is not on this machine. Raises SourceForbidden."""
    return RemoteFolder(locate(source), source.revision, subject_of(source))


class NoRanges(Exception):
    """The server does not send parts of files, or the file has changed since its first part."""


class About(msgspec.Struct, frozen=True):
    """What a store reports about a file."""

    size: int | None
    mark: str  # identifies its content; "" if nothing does
    sha256: str = ""
    validator: str = ""  # from a web server: the condition of each request for a block (If-Range)


class RemoteFolder:
    """A folder of an object store, a hub or a web server."""

    def __init__(self, location: Location, revision: str, subject: str) -> None:
        self.subject = subject
        self._location = location
        self._revision = revision
        self._root = ""
        self._found: dict[str, tuple[int | None, str]] = {}  # sizes and marks, as last listed

    def files(self, *names: str) -> dict[str, int | None]:
        """Return the files directly in the folder. Raises SourceNotFound, SourceForbidden or SourceUnavailable."""
        with storage_errors(self._location.scheme, self.subject):
            files, root = backend(self._location.scheme).files, self._resolved_root()
            if self._web:
                listed = _probe(files, root, names)
            else:
                if self._location.scheme in {"s3", "gs"}:
                    entries = sync(files.loop, _part_of_listing, files, root, names)
                else:
                    entries = files.ls(root, detail=True)
                listed = {each["name"].rsplit("/", 1)[-1]: each for each in entries if each["type"] == "file"}
        self._found = {name: (_size_of(each), _mark_of(each)) for name, each in listed.items()}
        return {name: size for name, (size, _) in self._found.items()}

    def check_same(self, *names: str) -> None:
        """See `Folder`. On a hub, all that is read is of one commit."""
        if self._location.scheme == "hf":
            return
        before = self._found
        self.files(*names)
        for name in names:
            if self._found.get(name) != before.get(name):
                raise SourceUnavailable(self.subject, f"changed {name} while it was read; retrying")

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open one file to be read from start to end, in blocks. Errors within the block are mapped, too."""
        with storage_errors(self._location.scheme, self.subject):
            path, files = f"{self._resolved_root()}/{name}", backend(self._location.scheme).files

            def open_by(block_bytes: int) -> BinaryIO:
                return cast(BinaryIO, files.open(path, "rb", block_size=block_bytes, cache_type="readahead"))

            opened = WebStream(open_by, BLOCK_BYTES) if self._web else open_by(BLOCK_BYTES)
            with closing(opened):
                yield cast(BinaryIO, opened)

    def about(self, name: str) -> About:
        """Return what the store reports about one of its files now. Raises as `files` does.

        Only web servers are asked for blocks of exactly that content. A bucket's blocks may be of newer content: call
        this again after the last one.
        """
        with storage_errors(self._location.scheme, self.subject):
            info = backend(self._location.scheme).files.info(f"{self._resolved_root()}/{name}")
        lfs = info.get("lfs") or {}
        return About(info.get("size"), _mark_of(info), lfs.get("sha256", ""), _validator(info) if self._web else "")

    @contextmanager
    def open_at(self, name: str, start: int, about: About, *, in_blocks: bool) -> Iterator[BinaryIO]:
        """Open one file to be read from `start` on, as long as its content is that of `about`.

        Without `in_blocks` it is read in one response, from its start. Raises NoRanges, and errors as `open` does.
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
                except ValueError as error:  # fsspec's only sign of it
                    if not web:
                        raise
                    raise NoRanges from error

    @property
    def _web(self) -> bool:
        return self._location.scheme in {"http", "https"}

    def _resolved_root(self) -> str:
        """Return the folder's path for its filesystem; for hf:// with the revision's commit, looked up once."""
        if not self._root:
            here = self._location
            if self._web:
                self._root = f"{here.scheme}://{here.host}/{here.path}".rstrip("/")
            elif here.scheme == "hf":
                place = place_of(here, self.subject)
                self._root = place.at(self._commit(place))
            else:
                self._root = f"{here.host}/{here.path}".rstrip("/")
        return self._root

    def _commit(self, place: Place) -> str:
        if _COMMIT.fullmatch(self._revision):
            return self._revision
        commit = commit_of(place.kind, place.repository, self._revision)
        if not commit or not _COMMIT.fullmatch(commit):
            raise SourceUnavailable(self.subject, "the hub named no commit for the revision; retrying")
        return commit


def _validator(info: FileInfo) -> str:
    etag = str(info.get("ETag") or "")
    strong = "" if etag.startswith("W/") else etag  # contents with one weak tag may differ in bytes
    return strong or str(info.get("Last-Modified") or "")


def _mark_of(info: FileInfo) -> str:
    marks = [_validator(info), *[f"{key}={info[key]}" for key in _MARKS if info.get(key)]]
    return ";".join([*marks, f"{info.get('size')}"]) if any(marks) else ""


def _size_of(info: FileInfo) -> int | None:
    size = info.get("size")
    return None if size is None else int(size)


def _probe(files: AbstractFileSystem, root: str, names: tuple[str, ...]) -> dict[str, FileInfo]:
    """Return those of the files that a web server has.

    Buckets that anybody may read, but not list, refuse what does not exist: with 403, as if it were secret. A server
    that does not refuse `_ABSENT` refuses only what exists.
    """
    answers = {name: _answer(files, f"{root}/{name}") for name in names}
    found = {name: each for name, each in answers.items() if isinstance(each, Mapping)}
    refusals = [each for each in answers.values() if isinstance(each, FileNotFoundError)]
    if refusals and not (found and isinstance(_answer(files, f"{root}/{_ABSENT}"), FileNotFoundError)):
        raise refusals[0]
    return found


async def _part_of_listing(files: Any, root: str, names: tuple[str, ...]) -> list[FileInfo]:
    """Return a bucket's entries for these files and some others: a folder may have millions.

    Few are listed each by itself, since other folders' names may begin as theirs do: "adapter-1/".
    """
    # As texts: "model-0000" is where shards begin.
    prefixes = names if 0 < len(names) <= FEW else (commonprefix(names),)  # noqa: RUF071
    parts = await asyncio.gather(*(_beginning(files, root, each) for each in prefixes))
    return [each for part in parts for each in part]


async def _beginning(files: Any, root: str, prefix: str) -> list[FileInfo]:
    """Return a bucket's entries whose names begin so. Raises FileNotFoundError if it lacks the bucket or folder."""
    try:
        return cast(list[FileInfo], await files._ls(root, detail=True, prefix=prefix))
    except FileNotFoundError as error:  # by gcsfs also for none
        if not prefix or lacks_bucket(error):
            raise
        return []


def _answer(files: AbstractFileSystem, path: str) -> FileInfo | FileNotFoundError | None:
    """Return a web server's info of a file, None if there is no such file, or the error if it is refused."""
    try:
        return cast(FileInfo, files.info(path))
    except FileNotFoundError as error:
        cause = cause_of(error)
        if cause is error:
            return None
        if status_of(cause) == HTTPStatus.FORBIDDEN:
            return error
        raise
