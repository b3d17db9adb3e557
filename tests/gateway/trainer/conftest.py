"""Real engines that train by calls, behind a gateway, and a client that retries, which a scene's own does not."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mint_gateway.client import Client
from tests.engine.running import save_base
from tests.gateway.scene import Scene
from tests.gateway.taught import LIMIT_S, School, schooling


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
async def school(scene: Scene, base: Path, tmp_path: Path) -> AsyncIterator[School]:
    async with schooling(scene, base, tmp_path) as school:
        yield school


@pytest.fixture
async def patient(school: School) -> AsyncIterator[Client]:
    async with Client(school.scene.target, patience_s=LIMIT_S) as client:
        yield client
