"""Writable folders over real stores: an error names the volume or bucket that it is about."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from mint_contracts.backends import backend
from mint_contracts.catalog_parts import Parts
from mint_contracts.errors import (
    CorruptFile,
    MintError,
    Overloaded,
    SourceForbidden,
    SourceNotFound,
    SourceUnavailable,
)
from mint_contracts.object_store import object_store
from mint_contracts.source import Source
from mint_contracts.storage_errors import storage_errors
from mint_engine.policies.stored.store import store_of
from tests.engine import stores
from tests.waiting import until


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, Overloaded, "has no room left on its volume"),
        (errno.EDQUOT, Overloaded, "has no room left on its volume"),
        (errno.EROFS, SourceForbidden, "may not be written .Read-only file system.; check how its volume is mounted"),
        (errno.EACCES, SourceForbidden, "may not be written .Permission denied."),
        (errno.EIO, SourceUnavailable, "could not be written .Input/output error.; retrying"),
    ],
)
def test_a_broken_volume_is_named_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[MintError], message: str
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(kind, match=f"source 'file://{tmp_path}/catalog': {message}"):
        object_store(Source(f"file://{tmp_path}/catalog")).put("part", b"content")
    assert not any((tmp_path / "catalog").iterdir())


def test_leftovers_of_interrupted_writers_are_removed(tmp_path: Path) -> None:
    old, young = tmp_path / ".old.unfinished", tmp_path / ".young.unfinished"
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    object_store(Source(f"file://{tmp_path}")).tidy()
    assert list(tmp_path.iterdir()) == [young]


@pytest.mark.parametrize("uri", ["https://host/catalog", "hf://a/b"])
def test_a_scheme_that_cannot_be_written_is_refused_with_those_that_can(uri: str) -> None:
    with pytest.raises(SourceForbidden, match="cannot be written; use file://, pvc://, s3://, gs://"):
        object_store(Source(uri, "v1"))


class CutOff(BaseHTTPRequestHandler):
    """A server whose answers end before their Content-Length."""

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"a beginning")


def test_a_bucket_that_cuts_its_answers_off_is_temporarily_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket(monkeypatch, CutOff), pytest.raises(SourceUnavailable, match="did not answer"):
        object_store(Source("s3://shelf/catalog")).read("part", 1000)


class Forgetful(BaseHTTPRequestHandler):
    """A server that loses its answer to an upload's completion, and then knows of no such upload, as MinIO does."""

    protocol_version = "HTTP/1.1"
    uploads: set[str] = set()  # noqa: RUF012 - the server's, not a request's

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("?uploads"):
            self.uploads.add("1")
            self.answer(200, "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")
        elif self.uploads:
            self.uploads.clear()
            self.close_connection = True
        else:
            self.answer(404, "<Error><Code>NoSuchUpload</Code></Error>")

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, "")

    do_DELETE = do_POST  # noqa: N815 - the library's name

    def answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


def test_an_upload_that_may_be_complete_is_to_be_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        bucket(monkeypatch, Forgetful),
        pytest.raises(SourceUnavailable, match="did not answer"),
        storage_errors("s3", "part"),
    ):
        backend("s3").files.pipe_file("shelf/part", b"in parts", chunksize=4)
    assert not Forgetful.uploads, "its completion was asked for"


class Keeping(BaseHTTPRequestHandler):
    """A server that lists one object and deletes none, for the reason `why`."""

    protocol_version = "HTTP/1.1"
    why = ""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("<ListBucketResult><Contents><Key>a/one</Key><Size>1</Size></Contents></ListBucketResult>")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(f"<DeleteResult><Error><Key>a/one</Key><Code>{self.why}</Code></Error></DeleteResult>")

    def answer(self, body: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


@pytest.mark.parametrize(
    ("why", "kind"), [("AccessDenied", SourceForbidden), ("InternalError", SourceUnavailable), ("NoSuchKey", None)]
)
def test_what_a_bucket_does_not_delete_is_told(
    why: str, kind: type[MintError] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Keeping, "why", why)
    with bucket(monkeypatch, Keeping), pytest.raises(kind) if kind else nullcontext(), storage_errors("s3", "a"):
        backend("s3").files.rm("shelf/a", recursive=True)


class Refusing(Keeping):
    """A server that refuses every object, for the reason `why`."""

    def answer(self, body: str) -> None:
        self.send_response(403)
        error = f"<Error><Code>{self.why}</Code></Error>"
        self.send_header("Content-Length", str(len(error)))
        self.end_headers()
        self.wfile.write(error.encode())


@pytest.mark.parametrize(
    ("why", "said"),
    [("RequestTimeTooSkewed", "PermissionError, RequestTimeTooSkewed"), ("SlowDown", "OSError, SlowDown")],
)
def test_the_reason_that_a_bucket_gives_is_told(why: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeping, "why", why)
    with bucket(monkeypatch, Refusing), pytest.raises(MintError) as caught:
        object_store(Source("s3://shelf/catalog")).names()
    assert f"({said})" in str(caught.value)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_bucket_that_does_not_exist_is_not_taken_for_an_empty_one(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        empty = stores.opened(scheme, tmp_path, stack, monkeypatch)
        assert object_store(empty).names() == store_of(empty).names("catalog") == []
        mistyped = Source(f"{scheme}://mistyped/a")
        with pytest.raises(SourceNotFound, match="://mistyped/a': holds nothing there"):
            object_store(mistyped).names()
        with pytest.raises(SourceNotFound, match="://mistyped/a': holds nothing there"):
            store_of(mistyped).names("catalog")


def vast(path: Path) -> None:
    """Create a sparse file of a terabyte."""
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.truncate(path, 1 << 40)


def test_files_too_large_to_be_parts_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vast(tmp_path / "shelf" / "part")
    with (
        stores.serving(stores.Files, tmp_path) as (address, handler),
        stores.credentials(monkeypatch, f"http://{address}"),
        pytest.raises(CorruptFile, match=r"'s3://shelf' file 'part': has 1099511627776 bytes, and"),
    ):
        object_store(Source("s3://shelf")).read("part", 1000)
    assert handler.seen == ["HEAD /shelf/part"]
    local = object_store(Source(f"file://{tmp_path}/shelf"))
    with pytest.raises(CorruptFile, match="at most 1000; move it elsewhere"):
        local.read("part", 1000)
    local.put("part", b"x" * 1000)
    assert local.read("part", 1000) == b"x" * 1000


class Slow(BaseHTTPRequestHandler):
    """A server that takes an object only once `may` is set."""

    protocol_version = "HTTP/1.1"  # for Expect: 100-continue
    may, seen = Event(), list[str]()

    def log_message(self, *_: object) -> None:
        pass

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.may.wait(60)
        self.do_DELETE()

    def do_DELETE(self) -> None:
        self.seen.append(f"{self.command} {self.path}")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


async def test_a_part_written_after_its_writer_was_refused_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mint_contracts.catalog_parts.WRITE_TIMEOUT_S", 0.5)
    with bucket(monkeypatch, Slow):
        with pytest.raises(SourceUnavailable, match="did not answer for"):
            await Parts(Source("s3://shelf/catalog")).write("part", [])
        Slow.may.set()
        await until(lambda: len(Slow.seen) == 2)
    assert Slow.seen == ["PUT /shelf/catalog/part", "DELETE /shelf/catalog/part"]


@contextmanager
def bucket(monkeypatch: pytest.MonkeyPatch, handler: type[BaseHTTPRequestHandler]) -> Iterator[None]:
    """Serve s3:// requests by this handler."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with stores.credentials(monkeypatch, f"http://127.0.0.1:{server.server_port}"):
            yield
        server.shutdown()
