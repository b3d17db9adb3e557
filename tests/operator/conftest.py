"""Fixtures of the operator's tests."""

import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.apiserver import ApiServer
from tests.heartbeats import expire_late
from tests.operator.catalogs import Catalog, entry
from tests.operator.stage import Stage, staged
from tests.redis_process import RedisProcess, patient

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _strong_hearts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the heartbeats of played engines alive until the test ends them, however long passes and kubectl take."""
    expire_late(monkeypatch)


@pytest.fixture
def namespace(api_server: ApiServer) -> str:
    """A separate namespace for this test."""
    return api_server.namespace(f"operator-{next(_numbers)}")


@pytest.fixture
async def stage(api_server: ApiServer, namespace: str, redis_client: Redis) -> AsyncIterator[Stage]:
    """A namespace, an empty Redis, and an operator to drive pass by pass."""
    with staged(api_server, namespace, redis_client) as stage:
        yield stage


@pytest.fixture
async def mortal_stage(
    api_server: ApiServer, namespace: str, own_redis: RedisProcess
) -> AsyncIterator[tuple[Stage, RedisProcess]]:
    """A stage whose Redis may be killed."""
    redis = patient(own_redis.url)
    with staged(api_server, namespace, redis) as stage:
        yield stage, own_redis
    await redis.aclose()


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder served over HTTP, and its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
async def catalog(stage: Stage) -> Catalog:
    """Five names, three of which are SUPPORT."""
    found = Catalog(stage)
    await found.register(
        *[entry(f"acme/support-{n}", team="support") for n in range(3)], entry("acme/law-1", team="law"), entry("b/c")
    )
    return found
