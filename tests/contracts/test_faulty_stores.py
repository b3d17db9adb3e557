"""Stores and web servers that fall silent, trickle or cut connections: callers get an error in time and may retry."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from mint_contracts import backends
from mint_contracts.errors import MintError, SourceUnavailable
from mint_contracts.object_store import ObjectStore, object_store
from mint_contracts.source import Source
from mint_engine.sources.copying import read_up_to
from mint_engine.sources.retry import retrying
from mint_engine.sources.storage import About, RemoteFolder, remote_folder
from tests.engine import stores
from tests.relay import SLOW_S, TAKEN, Relay, relaying

FAULTS = ("silent", "trickle", "cut")
LIMIT_S = 30.0  # only a failing test waits this long
PART = b"part" * 1000
LARGE = bytes(8 << 20)  # more than socket buffers hold while nobody reads
WHOLE = bytes(1 << 20)  # small enough that even a busy machine transfers it within these bounds

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use time limits of a second; a busy machine may need several tries."""
    backends.backend.cache_clear()
    monkeypatch.setattr("mint_contracts.time_limits.ANSWER_S", 1.0)
    monkeypatch.setattr("mint_contracts.time_limits.SLOWEST_BYTES_S", 100 << 20)
    monkeypatch.setattr("mint_contracts.backends.READ_TIMEOUT_S", 0.5)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(variable, raising=False)
    yield
    backends.backend.cache_clear()


def together(works: list[Callable[[], object]]) -> list[MintError | None]:
    """Run all at once and return the error of each, or None. Raises TimeoutError if one has not ended."""

    def outcome(work: Callable[[], object]) -> MintError | None:
        try:
            work()
        except MintError as error:
            return error
        return None

    threads = ThreadPoolExecutor(len(works))
    try:
        return [each.result(LIMIT_S) for each in [threads.submit(outcome, work) for work in works]]
    finally:
        threads.shutdown(wait=False)


def insist(work: Callable[[], T]) -> T:
    """Retry until storage answers, and return the result."""
    return retrying(work, attempts=20)


def once_healed(work: Callable[[], T]) -> T:
    """Return the result from a store that answers again, however long that takes on a busy machine."""
    with pytest.MonkeyPatch.context() as patient:
        patient.setattr("mint_contracts.time_limits.ANSWER_S", LIMIT_S)
        return insist(work)


@pytest.fixture(params=["s3", "gs"])
def bucket(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ObjectStore, Relay]]:
    """A store over a real bucket, and the relay between the two."""
    (tmp_path / "shelf").mkdir()
    with ExitStack() as stack:
        stores.opened(request.param, tmp_path / "shelf", stack, monkeypatch)
        variable = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}[request.param]
        real = os.environ[variable]
        relay = stack.enter_context(relaying(real.removeprefix("http://")))
        monkeypatch.setenv(variable, f"http://127.0.0.1:{relay.port}")
        yield object_store(Source(f"{request.param}://{stores.BUCKET}/catalog")), relay


@pytest.mark.parametrize("fault", FAULTS)
def test_a_silent_bucket_is_unavailable_to_every_caller_until_it_answers_again(
    fault: str, bucket: tuple[ObjectStore, Relay]
) -> None:
    store, relay = bucket
    insist(lambda: store.put("part", PART))
    relay.fault = fault
    ended = together(
        [
            store.names,
            lambda: store.read("part", 1 << 20),
            lambda: store.put("small", PART),
            lambda: store.put("large", LARGE),
            lambda: store.delete("other"),
        ]
    )
    assert [type(each) for each in ended] == [SourceUnavailable] * 5
    assert [" file 'part': storage did not" in str(ended[1]), " file 'large': storage" in str(ended[3])] == [True] * 2
    relay.heal()
    insist(lambda: store.put("large", WHOLE))
    assert insist(lambda: (store.read("part", 1 << 20), store.read("large", 16 << 20))) == (PART, WHOLE)


@pytest.fixture
def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow minutes for a large transfer as a whole."""
    monkeypatch.setattr("mint_contracts.time_limits.SLOWEST_BYTES_S", 128 << 10)


@pytest.mark.usefixtures("_steady")
@pytest.mark.parametrize("fault", ["silent", "stuck"])
def test_a_stuck_upload_is_given_up_long_before_a_slow_one_would_end(
    fault: str, bucket: tuple[ObjectStore, Relay]
) -> None:
    store, relay = bucket
    relay.fault, relay.freely = fault, {"silent": 0, "stuck": 1 << 20}[fault]
    assert [type(each) for each in together([lambda: store.put("large", LARGE)] * 2)] == [SourceUnavailable] * 2
    relay.heal()
    insist(lambda: store.put("large", WHOLE))


@pytest.mark.usefixtures("_steady")
def test_a_slow_and_steady_upload_succeeds(
    bucket: tuple[ObjectStore, Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("time_limits.ANSWER_S", "backends.READ_TIMEOUT_S"):
        monkeypatch.setattr(f"mint_contracts.{bound}", SLOW_S * 400)
    store, relay = bucket
    relay.fault, content = "slow", bytes(TAKEN * 500)  # takes longer than a server may be silent
    insist(lambda: store.put("large", content))
    relay.heal()
    assert once_healed(lambda: store.read("large", len(content))) == content


@pytest.fixture(params=["http", "hf"])
def web(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RemoteFolder, Relay]]:
    """A folder with one file on a real web server or hub, and the relay in front of it."""
    folder, handler = tmp_path / "team/store", {"http": stores.Files, "hf": stores.Hub}[request.param]
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(LARGE)
    with stores.serving(handler, tmp_path) as (address, _), relaying(address) as relay:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{relay.port}")
        uri = {"http": f"http://127.0.0.1:{relay.port}/team/store", "hf": "hf://team/store"}[request.param]
        yield remote_folder(Source(uri, "v1")), relay


def in_blocks(folder: RemoteFolder) -> bytes:
    with folder.open("file") as file:
        return read_up_to(file, len(LARGE))


def at_one_go(folder: RemoteFolder) -> bytes:
    with folder.open_at("file", 0, About(None, ""), in_blocks=False) as file:
        return read_up_to(file, len(LARGE))


@pytest.mark.parametrize("freely", [0, 10, 4000])  # bytes passed per answer: none, some head, some body
@pytest.mark.parametrize("fault", FAULTS)
def test_a_silent_web_server_is_unavailable_until_it_answers_again(
    fault: str, freely: int, web: tuple[RemoteFolder, Relay]
) -> None:
    folder, relay = web
    relay.fault, relay.freely = fault, freely
    ended = together([lambda: in_blocks(folder), lambda: at_one_go(folder)])
    assert [type(each) for each in ended] == [SourceUnavailable] * 2
    relay.heal()
    assert once_healed(lambda: in_blocks(folder)) == once_healed(lambda: at_one_go(folder)) == LARGE


def test_a_hub_that_sends_retry_after_is_not_retried_for_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Busy(stores.Hub):
        def end_headers(self) -> None:
            self.send_header("Retry-After", "86400")
            super().end_headers()

    with stores.serving(Busy, tmp_path) as (address, handler):
        monkeypatch.setenv("HF_ENDPOINT", f"http://{address}")
        handler.faults["/revision/v1"] = 1
        (ended,) = together([lambda: in_blocks(remote_folder(Source("hf://team/store", "v1")))])
    assert "503" in str(ended)
