"""Readiness: false before the base is loaded and while draining; draining finishes accepted requests or times out."""

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mint_contracts import engine_pb2
from mint_contracts.errors import Draining, EngineUnavailable
from mint_contracts.sampling_pb2 import GenerateRequest, SamplingParams
from mint_contracts.wire import from_rpc_error
from mint_engine.serve import listen
from tests.engine.running import ask, running, settings_for
from tests.engine.steps import LONG, Gate, refusal
from tests.waiting import until


async def health_of(channel: grpc.aio.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


SERVICES = ("", "mint.v1.Sampler", "mint.v1.Engine")


async def test_health_follows_the_engine(base: Path) -> None:
    """Not serving before the base is loaded, nor while draining; a draining engine finishes what it has accepted."""
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    server = await listen(settings_for(base), "tiny-0", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        assert [await health_of(channel, name) for name in SERVICES] == [not_serving] * 3
        await server.drain(1)
    async with running(base) as engine:
        assert [await health_of(engine.channel, name) for name in SERVICES] == [serving] * 3
        gate = Gate(engine)
        taken = asyncio.create_task(ask(engine, [5], max_tokens=5, ignore_eos=True))
        await gate.closed()
        drain = asyncio.create_task(engine.server.drain(30))
        await until(lambda: not engine.server.ready)
        assert [await health_of(engine.channel, name) for name in SERVICES] == [not_serving] * 3
        assert isinstance(await refusal(engine, GenerateRequest(text="dog")), Draining)
        gate.open()
        assert len((await taken).tokens) == 5
        assert await drain


async def test_draining_does_not_wait_for_ever(base: Path) -> None:
    async with running(base) as engine:
        gate = Gate(engine)
        cut = asyncio.create_task(
            refusal(engine, GenerateRequest(text="dog", sampling=SamplingParams(max_tokens=LONG)))
        )
        await gate.closed()
        drain = asyncio.create_task(engine.server.drain(0.05))
        await until(lambda: engine.server.stopping)
        gate.open()
        assert not await drain
        assert isinstance(await cut, Draining)


async def test_before_the_base_is_loaded(base: Path) -> None:
    server = await listen(settings_for(base), "tiny-0", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        from mint_contracts import engine_pb2_grpc, sampling_pb2_grpc

        sampler = sampling_pb2_grpc.SamplerStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [event async for event in sampler.Generate(GenerateRequest(text="dog"))]
        assert isinstance(from_rpc_error(caught.value), EngineUnavailable)
        info = await engine_pb2_grpc.EngineStub(channel).GetInfo(engine_pb2.GetInfoRequest())
        assert not info.ready
    await server.drain(1)
