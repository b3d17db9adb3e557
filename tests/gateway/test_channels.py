"""A gateway's connections to the engines, which are pods of its own cluster."""

from collections.abc import AsyncIterator

import pytest

from mint_contracts.sampling_pb2 import GenerateRequest
from mint_gateway.channels import Channels
from tests.gateway.scene import BASE, LIMIT_S
from tests.gateway.scripted import ScriptedEngine
from tests.redis_process import free_port


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine(BASE, "smollm2-0")
    await engine.listen()
    yield engine
    await engine.deafen()


@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
async def test_engines_are_called_directly_where_pods_have_a_proxy_for_what_is_outside(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for exempting in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(exempting, raising=False)
    monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    channels = Channels()
    async with channels.use(engine.address) as stubs:
        call = stubs.sampler.Generate(GenerateRequest(base_model=BASE, text="Ahoy"), timeout=LIMIT_S)
        assert [event async for event in call]
    await channels.close()
