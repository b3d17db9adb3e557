"""Manifests from slow HTTP servers: each is read completely or refused, and nothing else waits."""

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mint_contracts.backends import backend
from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.errors import InvalidRequest, SourceUnavailable
from mint_contracts.functions import connect
from mint_contracts.records import Failure
from mint_contracts.training import Policy
from mint_operator.observing import manifest_file, train_manifest
from mint_operator.observing.manifest_file import AT_ONCE, MOST_BYTES, fetch
from mint_operator.observing.train_manifest import Manifests
from mint_operator.observing.wave_lists import Lists
from mint_operator.planning.lookup import Lookup
from tests.engine import stores
from tests.waiting import join, until

PIECE_S = 0.02
POLICY = b'{"name": "acme/a"}\n'
ENTRY = b'{"name": "acme/a", "uri": "s3://adapters/a"}\n'


class Slow:
    """A server that answers in pieces without a length: /drip endlessly, other paths with the pieces in `holds`."""

    def __init__(self) -> None:
        self.holds: dict[str, list[bytes]] = {}
        self._ended = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def drips(self, count: int) -> list[str]:
        return [f"{self.url}/drip/{index}.jsonl" for index in range(count)]

    def end(self) -> None:
        self._ended.set()
        self._server.shutdown(socket.SHUT_RDWR)  # wakes accept, without a connection from another socket
        join(self._thread)
        self._server.close()

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            asked = connection.recv(1 << 16).split()
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            if asked[0] == b"HEAD":
                return
            path = asked[1].decode()
            try:
                for piece in self.holds.get(path, ()):
                    connection.sendall(piece)
                    self._ended.wait(PIECE_S)
                while path.startswith("/drip") and not self._ended.wait(PIECE_S):
                    connection.sendall(b"\n")
            except OSError:
                return


@pytest.fixture
def slow() -> Iterator[Slow]:
    server = Slow()
    yield server
    server.end()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon."""
    monkeypatch.setattr(manifest_file, "READ_S", 0.3)


async def others_run() -> None:
    """Check that other work, such as planning or name resolution, gets a thread."""
    async with asyncio.timeout(60):
        await asyncio.to_thread(lambda: None)


def test_a_manifest_sent_in_pieces_without_a_length_is_read_completely(slow: Slow) -> None:
    slow.holds["/whole"] = [POLICY] * 5
    assert fetch(f"{slow.url}/whole") == POLICY * 5


def test_a_manifest_that_never_ends_is_given_up(slow: Slow, impatient: None) -> None:
    with pytest.raises(SourceUnavailable, match="the download did not finish in time"):
        fetch(slow.drips(1)[0])


def test_a_manifest_that_is_too_long_is_refused_without_reading_on(slow: Slow) -> None:
    slow.holds["/drip/long"] = [b"x" * (MOST_BYTES + 1)]
    with pytest.raises(InvalidRequest, match="is larger than the limit of 4 MiB; split it over several waves"):
        fetch(f"{slow.url}/drip/long")


class Signing(stores.Files):
    """Redirects to a bucket that is too busy to answer, with the credentials to read from it."""

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        if "secret" in self.path:
            self.send_error(503)
        else:
            self.send_response(302)
            self.send_header("Location", "/bucket/wave.jsonl?X-Amz-Signature=secret")
            self.end_headers()


def test_an_error_names_no_url_that_a_server_has_signed(tmp_path: Path) -> None:
    backend.cache_clear()
    with stores.serving(Signing, tmp_path) as (address, _):
        uri = f"http://{address}/wave.jsonl"
        with pytest.raises(SourceUnavailable) as caught:
            fetch(uri)
    assert str(caught.value) == f"manifest {uri}: could not be read (ClientResponseError, HTTP 503); retrying"


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_manifest_that_announces_too_many_bytes_is_not_read(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "wave.jsonl").touch()
    os.truncate(tmp_path / "shelf" / "wave.jsonl", 1 << 40)
    with (
        stores.serving(stores.Files, tmp_path) as (address, handler),
        stores.credentials(monkeypatch, f"http://{address}"),
    ):
        uri = "s3://shelf/wave.jsonl" if scheme == "s3" else f"http://{address}/shelf/wave.jsonl"
        message = f"manifest {uri}: is larger than the limit of 4 MiB; split it over several waves"
        with pytest.raises(InvalidRequest, match=message):
            fetch(uri)
    assert scheme == "http" or handler.seen == ["HEAD /shelf/wave.jsonl"]


async def test_manifests_of_policies_that_drip_keep_only_manifests_waiting(
    slow: Slow, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_manifest, "RETRY_S", 0.0)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    slow.holds["/good.jsonl"] = [POLICY]
    good, drips = f"{slow.url}/good.jsonl", slow.drips(2 * AT_ONCE)
    manifests = Manifests(lambda: None)
    manifests.want({uri: ("team", uri) for uri in drips})
    await asyncio.sleep(0)  # all have begun
    await others_run()

    def read() -> bool:  # on a busy machine the good one may take too long as well, for once
        manifests.want({uri: ("team", uri) for uri in (*drips, good)})
        return len(manifests.found) == len(drips) + 1 and manifests.found[good] == (Policy("acme/a"),)

    await until(read)
    for uri in drips:
        found = manifests.found[uri]
        assert isinstance(found, Failure)
        assert (found.reason, found.terminal) == ("SourceUnavailable", False)


async def test_manifests_of_adapters_that_drip_keep_only_manifests_waiting(slow: Slow, impatient: None) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    slow.holds["/good.jsonl"] = [ENTRY]
    good = Lookup("team/smol", manifest=f"{slow.url}/good.jsonl")
    drips = [Lookup("team/smol", manifest=uri) for uri in slow.drips(2 * AT_ONCE)]
    lists = Lists(CatalogReader(connect("redis://127.0.0.1:1")), lambda: None)
    await lists.refresh(drips)
    await asyncio.sleep(0)
    await others_run()

    async def read() -> bool:  # on a busy machine the good one may take too long as well, for once
        await lists.refresh([*drips, good])
        return len(lists.found) == len(drips) + 1 and lists.found[good].listed is not None

    await until(read)
    assert [each.name for each in lists.found[good].listed or ()] == ["acme/a"]
    for lookup in drips:
        failure = lists.found[lookup].failure
        assert failure is not None
        assert failure.reason == "SourceUnavailable"


async def test_manifests_that_drip_delay_none_of_another_namespace(slow: Slow) -> None:
    """Here one that drips is never given up, so whatever waited for it would wait for good."""
    slow.holds |= {"/policies.jsonl": [POLICY], "/adapters.jsonl": [ENTRY]}
    drips = [Lookup("team/smol", manifest=uri, namespace="slow") for uri in slow.drips(2 * AT_ONCE)]
    good = Lookup("team/smol", manifest=f"{slow.url}/adapters.jsonl", namespace="quick")
    lists, manifests = Lists(CatalogReader(connect("redis://127.0.0.1:1")), lambda: None), Manifests(lambda: None)
    await lists.refresh(drips)
    await asyncio.sleep(0)  # all have begun

    async def read() -> bool:
        await lists.refresh([*drips, good])
        manifests.want({"uid": ("other", f"{slow.url}/policies.jsonl")})
        return good in lists.found and "uid" in manifests.found

    await until(read)
    assert [each.name for each in lists.found[good].listed or ()] == ["acme/a"]
    assert manifests.found["uid"] == (Policy("acme/a"),)
    assert not any(drip in lists.found for drip in drips)
