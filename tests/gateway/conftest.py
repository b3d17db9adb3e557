"""Fixtures for the gateway's tests: scenes over the run's shared Redis, or over one that the test may kill."""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from mint_gateway.catalog.resolver import Resolver
from tests.engine import stores
from tests.gateway.scene import Scene
from tests.gateway.tenants import Tenants
from tests.gateway.training_waves import Training
from tests.heartbeats import expire_late
from tests.redis_process import RedisProcess, patient


@pytest.fixture(autouse=True)
def _strong_hearts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep scripted engines alive until the test ends them, however long the machine stalls."""
    expire_late(monkeypatch)


@pytest.fixture(autouse=True)
def _short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gateways poll catalogs and secrets often, so that no test waits a second for a timer."""
    for looked in ("catalog.keeper", "catalog.catalogs", "security.mounted"):
        monkeypatch.setattr(f"mint_gateway.{looked}.LOOK_S", 0.1)


@pytest.fixture(autouse=True)
def _ready_without_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gateways take an empty map for complete, as no operator says that it is."""
    monkeypatch.setattr("mint_gateway.mirror.EMPTY_S", 0.0)


@pytest.fixture
async def scene(redis_client: Redis) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield Scene(redis_client, stack)


@pytest.fixture
async def tenants(scene: Scene, tmp_path: Path) -> AsyncIterator[Tenants]:
    async with AsyncExitStack() as stack:
        tenants = Tenants(scene, stack, tmp_path)
        await tenants.begin()
        yield tenants


@pytest.fixture
async def fragile(own_redis: RedisProcess) -> AsyncIterator[Scene]:
    """A scene over `own_redis`."""
    redis = patient(own_redis.url)
    async with AsyncExitStack() as stack:
        yield Scene(redis, stack)
    await redis.aclose()


@pytest.fixture
def news(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The bases and names that a gateway has dropped from its cache because they changed."""
    heard, forget = list[tuple[str, str]](), Resolver.forget

    def noted(self: Resolver, base: str, names: Iterable[str]) -> None:
        forgotten = list(names)
        forget(self, base, forgotten)
        heard.extend((base, name) for name in forgotten)

    monkeypatch.setattr(Resolver, "forget", noted)
    return heard


@pytest.fixture(params=["file", "s3"])
def manifests(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder for manifests in a real store."""
    if request.param == "file":
        yield f"file://{tmp_path}/catalog"
        return
    (tmp_path / "shelf").mkdir()
    with stores.s3(tmp_path / "shelf") as url, stores.credentials(monkeypatch, url):
        yield f"s3://{stores.BUCKET}/catalog"


@pytest.fixture
def local(tmp_path: Path) -> str:
    return f"file://{tmp_path}/catalog"


@pytest.fixture
async def training(scene: Scene) -> Training:
    await scene.with_engine()
    return Training(scene)
