"""A gateway's connections to the engines, which are pods of its own cluster."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from mint_contracts.sampling_pb2 import GenerateRequest
from mint_gateway.channels import Channels
from tests.gateway.scene import BASE, LIMIT_S
from tests.gateway.scripted import ScriptedEngine
from tests.redis_process import free_port

WORD = "w" * 20_000


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


class Counted(Sequence[str]):
    """Long words, and how many of them an engine has sent."""

    def __init__(self, count: int) -> None:
        self._count, self.sent = count, 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: Any) -> Any:
        self.sent = at
        if at == self._count:
            raise IndexError
        return WORD


async def test_of_an_answer_that_its_client_does_not_read_little_is_taken(engine: ScriptedEngine) -> None:
    """However fast the connection: gRPC would take megabytes, of each of 2,000 requests in flight."""
    channels, request = Channels(), GenerateRequest(base_model=BASE, text="Ahoy")
    async with channels.use(engine.address) as stubs:

        async def read(count: int) -> None:
            engine.words = Counted(count)
            assert len([event async for event in stubs.sampler.Generate(request, timeout=LIMIT_S)]) == count + 2

        await read(2000)
        engine.words = unread = Counted(2000)
        call = stubs.sampler.Generate(request, timeout=LIMIT_S)
        await call.read()
        await read(2000)
        assert 0 < unread.sent * len(WORD) < 1 << 20
        call.cancel()
    await channels.close()
