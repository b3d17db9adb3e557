"""An engine that is ending refuses requests from the first moment, and finishes those that it has accepted."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from mint_contracts import sampling_pb2_grpc
from mint_contracts.errors import Draining
from mint_contracts.sampling_pb2 import GenerateRequest
from mint_contracts.settings import REDIS_URL
from mint_contracts.wire import from_rpc_error
from mint_engine import process, server
from mint_engine.environment import Start
from mint_engine.requests.prompts import read_prompt
from mint_engine.serve import EngineServer, listen
from tests.engine.running import ask, running, save_base, settings_for
from tests.waiting import until


@pytest.mark.parametrize("how", ["drain", "abort"])
async def test_requests_are_refused_while_the_map_is_still_to_be_told(
    how: str, tmp_path: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "TELL_S", 600)
    monkeypatch.setenv(REDIS_URL, redis_server)
    told = settings_for(save_base(tmp_path / "base"))
    listening = await listen(told, how, 0)
    engine = process.Process(Start(told, how, "127.0.0.1:1", tmp_path / "cache", 0, 0), listening)
    await engine.load_base()
    ending = asyncio.create_task(engine.drain() if how == "drain" else engine.abort())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listening.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [
                event async for event in sampling_pb2_grpc.SamplerStub(channel).Generate(GenerateRequest(text="dog"))
            ]
    assert isinstance(from_rpc_error(caught.value), Draining)
    assert not ending.done(), "nobody reports yet"
    following = asyncio.create_task(engine.agent.run())
    await ending
    if how == "abort":
        await engine.drain()
    following.cancel()
    await asyncio.wait({following})
    await engine.agent.leave()


async def test_an_engine_gives_accepted_requests_the_time_of_its_settings(
    base: Path, tmp_path: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, drain = list[float](), EngineServer.drain

    async def drained(self: EngineServer, timeout_s: float) -> bool:
        given.append(timeout_s)
        return await drain(self, timeout_s)

    monkeypatch.setattr(EngineServer, "drain", drained)
    monkeypatch.setattr(process, "TELL_S", 0)
    monkeypatch.setenv(REDIS_URL, redis_server)
    told = settings_for(base, drain_s=3000)
    engine = process.Process(Start(told, "e", "127.0.0.1:1", tmp_path / "cache", 0, 0), await listen(told, "e", 0))
    await engine.drain()
    [timeout_s] = given
    assert 2900 < timeout_s <= 3000
    await engine.agent.leave()


class Reading:
    """Reads prompts as usual, but "fox" only once the test lets it."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.let = threading.Event()

    def __call__(self, request: GenerateRequest, *given: Any) -> tuple[int, ...]:
        self.begun.append(request.text)
        assert request.text != "fox" or self.let.wait(60)
        return read_prompt(request, *given)


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    held = Reading()
    monkeypatch.setattr(server, "read_prompt", held)
    return held


@pytest.mark.parametrize("others", [0, 2])
async def test_a_request_whose_prompt_is_still_read_is_answered_whole(
    others: int, base: Path, reading: Reading
) -> None:
    async with running(base) as engine:
        beside = [asyncio.create_task(ask(engine, "dog", max_tokens=100, ignore_eos=True)) for _ in range(others)]
        late = asyncio.create_task(ask(engine, "fox", max_tokens=8, ignore_eos=True))
        await until(lambda: len(reading.begun) == others + 1)
        draining = asyncio.create_task(engine.server.drain(120))
        await until(lambda: not engine.server.ready)
        for each in beside:
            assert len((await each).tokens) == 100
        assert not engine.server.stopping
        reading.let.set()
        assert len((await late).tokens) == 8
        assert await draining


async def test_a_request_that_is_not_read_in_time_is_not_waited_for(base: Path, reading: Reading) -> None:
    async with running(base) as engine:
        late = asyncio.create_task(ask(engine, "fox", max_tokens=8))
        await until(lambda: reading.begun)
        draining = asyncio.create_task(engine.server.drain(0.01))
        await until(lambda: engine.stepper._stopping)
        reading.let.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await late
        assert isinstance(from_rpc_error(caught.value), Draining)
        assert not await draining
