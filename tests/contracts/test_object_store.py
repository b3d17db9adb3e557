"""Folders that can be written, over real stores: what is wrong with one is said of that one."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from mint_contracts.errors import SourceUnavailable
from mint_contracts.object_store import object_store
from mint_contracts.source import Source
from tests.engine import stores


class CutOff(BaseHTTPRequestHandler):
    """Answers that end before their length."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"a beginning")


def test_a_bucket_that_cuts_its_answers_off_is_away_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), CutOff) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with stores.credentials(monkeypatch, f"http://127.0.0.1:{server.server_port}"):
            folder = object_store(Source("s3://shelf/catalog"))
            with pytest.raises(SourceUnavailable, match="did not answer"):
                folder.read("part")
        server.shutdown()
