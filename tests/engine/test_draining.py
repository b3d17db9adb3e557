"""An engine that ends takes no more requests from the first moment on, whatever it still waits for."""

import asyncio
from pathlib import Path

import grpc
import pytest

from mint_contracts import sampling_pb2_grpc
from mint_contracts.errors import Draining
from mint_contracts.sampling_pb2 import GenerateRequest
from mint_contracts.settings import REDIS_URL
from mint_contracts.wire import from_rpc_error
from mint_engine import process
from mint_engine.environment import Start
from mint_engine.serve import listen
from tests.engine.running import save_base, settings_for


@pytest.mark.parametrize("how", ["drain", "fall"])
async def test_requests_are_refused_while_the_map_is_still_to_be_told(
    how: str, tmp_path: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "TELL_S", 600)
    monkeypatch.setenv(REDIS_URL, redis_server)
    told = settings_for(save_base(tmp_path / "base"))
    server = await listen(told, how, 0)
    engine = process.Process(Start(told, how, "127.0.0.1:1", tmp_path / "cache", 0, 0), server)
    await engine.bring_up()
    ending = asyncio.create_task(engine.drain() if how == "drain" else engine.fall())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [
                event async for event in sampling_pb2_grpc.SamplerStub(channel).Generate(GenerateRequest(text="dog"))
            ]
    assert isinstance(from_rpc_error(caught.value), Draining)
    assert not ending.done(), "nobody reports yet"
    following = asyncio.create_task(engine.agent.run())
    await ending
    if how == "fall":
        await engine.drain()
    following.cancel()
    await asyncio.wait({following})
    await engine.agent.leave()
