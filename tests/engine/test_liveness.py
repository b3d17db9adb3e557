"""The liveness probe of an engine's pod: alive while it waits for its base, and while it drains."""

from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mint_contracts.settings import LIVENESS_SERVICE, EngineSettings
from mint_contracts.source import Source
from mint_engine.serve import listen


async def test_an_engine_without_its_base_is_alive_and_not_ready(tmp_path: Path) -> None:
    settings = EngineSettings(
        base_model="team/tiny",
        source=Source(uri=f"file://{tmp_path}/absent"),
        device="cpu",
        dtype="float32",
        context_length=64,
        kv_cache_bytes=1 << 20,
        max_rank=8,
        device_slots=2,
        host_bytes=1 << 20,
        disk_bytes=1 << 20,
    )
    server = await listen(settings, "tiny-0", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        alive = await health.Check(health_pb2.HealthCheckRequest(service=LIVENESS_SERVICE))
        ready = await health.Check(health_pb2.HealthCheckRequest())
        await server.drain(1)
    assert alive.status == health_pb2.HealthCheckResponse.SERVING
    assert ready.status == health_pb2.HealthCheckResponse.NOT_SERVING
