"""Sources on web servers never lead to link-local addresses, where clouds' metadata services give credentials."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from mint_contracts.backends import backend
from mint_contracts.errors import SourceForbidden
from mint_contracts.storage_errors import storage_errors

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


@pytest.fixture
def redirecting() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
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


def look(url: str) -> None:
    with storage_errors("http", "source x"):
        backend("http").files.info(url)
