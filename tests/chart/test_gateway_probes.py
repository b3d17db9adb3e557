"""The chart's probes use paths that the gateway answers."""

import ssl
from pathlib import Path

import aiohttp
import pytest

from mint_contracts.functions import connect
from mint_gateway.http.door import listen
from mint_gateway.security.door_security import DoorSecurity
from mint_gateway.server import OPEN, Limits, serve
from tests.chart.rendering import DEFAULTS, container, render, workloads
from tests.gateway.secrets import Authority, mount
from tests.redis_process import free_port


@pytest.mark.parametrize("scheme", ["HTTP", "HTTPS"])
async def test_a_gateway_without_the_map_is_alive_but_not_ready(tmp_path: Path, scheme: str) -> None:
    values, security, trusted = DEFAULTS, OPEN, ssl.create_default_context()
    if scheme == "HTTPS":
        values = {"gateway": {"tls": {"secretName": "gateway-tls"}}}
        authority = Authority(tmp_path / "authority")
        security = DoorSecurity.by(mount(tmp_path / "tls", authority.certificate("gateway")), None)
        trusted.load_verify_locations(authority.file)
    own = container(workloads(render(values))["mint-gateway"])
    redis = connect(f"redis://127.0.0.1:{free_port()}/0")  # nobody listens there
    states = {}
    async with (
        serve(redis, "127.0.0.1:0", listen("127.0.0.1", 0), Limits(farewell_s=0.0), security) as gateway,
        aiohttp.ClientSession(f"{scheme.lower()}://127.0.0.1:{gateway.http_port}") as session,
    ):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asks = own[probe]["httpGet"]
            assert (asks["scheme"], asks["port"]) == (scheme, "http")
            async with session.get(asks["path"], ssl=trusted) as answer:
                states[probe] = answer.status
    await redis.aclose()
    assert states == {"startupProbe": 200, "livenessProbe": 200, "readinessProbe": 503}
