"""What every test may use: a real Redis and a real Kubernetes API server, private to the test run."""

import gc
from collections.abc import AsyncIterator, Iterator

import hypothesis
import pytest
from redis.asyncio import Redis

from tests.apiserver import ApiServer, serve
from tests.redis_process import RedisProcess, patient

# The machine is shared, so time is no part of a property; and the same examples run every time.
hypothesis.settings.register_profile("mint", deadline=None, derandomize=True)
hypothesis.settings.load_profile("mint")


def pytest_collection_finish() -> None:
    """What has been imported stays: collections of garbage need not go through its million objects each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries call what is left of them at the end a leak."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a redis-server of this run's own."""
    with RedisProcess(tmp_path_factory.mktemp("redis")) as process:
        yield process.url


@pytest.fixture
async def redis_client(redis_server: str) -> AsyncIterator[Redis]:
    """An empty Redis database."""
    client = patient(redis_server)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server of this run's own, with MinT's CRDs; a test keeps to a namespace of its own."""
    with serve(tmp_path_factory.mktemp("apiserver")) as server:
        yield server
