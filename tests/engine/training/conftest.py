"""Fixtures: real, empty stores of every kind."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mint_contracts import backends
from mint_contracts.source import Source
from mint_engine.policies.courses import keeping, roster
from mint_engine.policies.stored.store import Store, store_of
from tests.engine import stores


@pytest.fixture(autouse=True)
def _time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give closing engines enough time to finish their last saves even on a busy machine."""
    monkeypatch.setattr(keeping, "LAST_SAVE_S", 60.0)
    monkeypatch.setattr(roster, "CLOSE_S", 60.0)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Store]]:
    """A function that opens an empty store for a URI scheme: `opened("s3")`."""
    with contextlib.ExitStack() as stack:
        shelf = tmp_path / "shelf"
        (shelf / "claim").mkdir(parents=True)

        def open_store(scheme: str) -> Store:
            backends.backend.cache_clear()
            for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
                monkeypatch.delenv(variable, raising=False)
            if scheme == "pvc":
                monkeypatch.setenv("MINT_PVC_ROOT", str(shelf))
                return store_of(Source("pvc://claim/runs"))
            if scheme == "s3":
                monkeypatch.setenv("AWS_ENDPOINT_URL", stack.enter_context(stores.s3(shelf)))
                for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
                    monkeypatch.setenv(f"AWS_{name}", "secret")
                monkeypatch.setenv("AWS_REGION", "us-east-1")
                return store_of(Source(f"s3://{stores.BUCKET}/runs"))
            if scheme == "gs":
                monkeypatch.setenv("STORAGE_EMULATOR_HOST", stack.enter_context(stores.gs(shelf)))
                return store_of(Source(f"gs://{stores.BUCKET}/runs"))
            (shelf / "deep" / "runs").mkdir(parents=True)
            return store_of(Source(f"file://{shelf}/deep/runs"))

        yield open_store
    backends.backend.cache_clear()


@pytest.fixture
def store(opened: Callable[[str], Store]) -> Store:
    return opened("file")
