"""The chart's probes ask the gateway for what it answers."""

import ssl
from pathlib import Path

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mint_contracts.functions import connect
from mint_gateway.http.door import listen
from mint_gateway.secured import Secured
from mint_gateway.server import Limits, serve
from tests.chart.rendering import DEFAULTS, container, render, workloads
from tests.gateway.secrets import Authority, mount
from tests.redis_process import free_port

ServingStatus = health_pb2.HealthCheckResponse.ServingStatus


async def test_a_gateway_without_the_map_is_alive_but_not_ready() -> None:
    own = container(workloads(render(DEFAULTS))["mint-gateway"])
    redis = connect(f"redis://127.0.0.1:{free_port()}/0")  # nobody listens there
    async with (
        serve(redis, "127.0.0.1:0", listen("127.0.0.1", 0), Limits(farewell_s=0.0)) as gateway,
        grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        states = {}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            request = health_pb2.HealthCheckRequest(service=own[probe]["grpc"].get("service", ""))
            states[probe] = (await health.Check(request, timeout=60)).status
    await redis.aclose()
    assert states == {
        "startupProbe": ServingStatus.SERVING,
        "livenessProbe": ServingStatus.SERVING,
        "readinessProbe": ServingStatus.NOT_SERVING,
    }


async def test_by_tls_it_is_alive_and_not_ready_too(tmp_path: Path) -> None:
    own = container(workloads(render({"gateway": {"tls": {"secretName": "gateway-tls"}}}))["mint-gateway"])
    authority = Authority(tmp_path / "authority")
    secured = Secured.by(mount(tmp_path / "tls", authority.certificate("gateway")), None)
    trusted = ssl.create_default_context(cafile=str(authority.file))
    redis = connect(f"redis://127.0.0.1:{free_port()}/0")  # nobody listens there
    async with (
        serve(redis, "127.0.0.1:0", listen("127.0.0.1", 0), Limits(farewell_s=0.0), secured) as gateway,
        aiohttp.ClientSession(f"https://127.0.0.1:{gateway.http_port}") as session,
    ):
        states = {}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            async with session.get(own[probe]["httpGet"]["path"], ssl=trusted) as answer:
                states[probe] = answer.status
    await redis.aclose()
    assert states == {"startupProbe": 200, "livenessProbe": 200, "readinessProbe": 503}
