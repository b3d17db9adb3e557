"""Fixtures for every test: a real Redis and a real Kubernetes API server, private to the test run."""

import os

# Before anything imports Triton, which then interprets the kernels for GPUs: no test has one.
os.environ["TRITON_INTERPRET"] = "1"

import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
from redis.asyncio import Redis

from tests.apiserver import ApiServer, serve
from tests.redis_process import RedisProcess, patient

# The machine is shared, so properties have no deadline; and the same examples run every time.
hypothesis.settings.register_profile("mint", deadline=None, derandomize=True)
hypothesis.settings.load_profile("mint")


def pytest_collection_finish() -> None:
    """Freeze what has been imported, so that garbage collections need not walk its million objects each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Unfreeze: some libraries report objects that are left at exit as leaks."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a redis-server private to this run."""
    with RedisProcess(tmp_path_factory.mktemp("redis")) as process:
        yield process.url


@pytest.fixture
async def redis_client(redis_server: str) -> AsyncIterator[Redis]:
    """An empty Redis database."""
    client = patient(redis_server)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis that the test may kill."""
    with RedisProcess(tmp_path) as process:
        yield process


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server private to this run, with MinT's CRDs; each test uses its own namespace."""
    with serve(tmp_path_factory.mktemp("apiserver")) as server:
        yield server
