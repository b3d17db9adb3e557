"""Web servers, which anybody may run, lead to no link-local address and fill no memory.

At link-local addresses clouds' metadata services give credentials.
"""

import functools
import gzip
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from mint_contracts.backends import backend
from mint_contracts.errors import SourceForbidden, SourceUnavailable
from mint_contracts.storage_errors import storage_errors

MOST = 256 << 20
ADDRESSES = ("169.254.0.1", "[fe80::1]", "[::ffff:169.254.0.1]", "[fd00:ec2::254]")


class Redirecting(BaseHTTPRequestHandler):
    """Redirects from /HOST to http://HOST/."""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", f"http:/{unquote(self.path)}/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


class Flooding(BaseHTTPRequestHandler):
    """Has a file of 100 bytes, and sends the part that is asked for and then far more, plain or packed."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()

    def do_GET(self) -> None:
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/100")
        if self.path == "/packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        with suppress(ConnectionError):
            for piece in [packed()] if self.path == "/packed" else [bytes(1 << 20)] * (MOST >> 20):
                self.wfile.write(piece)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


@functools.cache
def packed() -> bytes:
    return gzip.compress(bytes(MOST), compresslevel=1)


@pytest.fixture
def redirecting() -> Iterator[str]:
    with serving(Redirecting) as address:
        yield address


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_source_leads_to_a_link_local_address(address: str) -> None:
    with pytest.raises(SourceForbidden, match=r"source x: address .* is a link-local address"):
        look(f"http://{address}:9/data.jsonl")


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_redirect_leads_to_a_link_local_address(redirecting: str, address: str) -> None:
    with pytest.raises(SourceForbidden, match=r"source x: address .* is a link-local address"):
        look(f"http://{redirecting}/{address}:9")


@pytest.mark.parametrize("name", ["plain", "packed"])
def test_no_more_of_a_part_is_kept_than_was_asked_for(name: str) -> None:
    backend.cache_clear()
    packed()  # so that it is not in what is traced
    with (
        serving(Flooding) as address,
        backend("http").files.open(f"http://{address}/{name}", "rb", block_size=100) as file,
        traced() as peak,
    ):
        with pytest.raises(SourceUnavailable), storage_errors("http", "source x"):
            file.read(100)
        assert peak() < MOST / 4


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the most memory so far, in bytes."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def look(url: str) -> None:
    with storage_errors("http", "source x"):
        backend("http").files.info(url)
