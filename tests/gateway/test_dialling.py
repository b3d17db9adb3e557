"""How a client reaches a gateway from a network whose outside is only reachable through a proxy."""

import asyncio
from contextlib import suppress

import grpc
import pytest

from mint_contracts.sampling_pb2 import GenerateRequest
from mint_contracts.sampling_pb2_grpc import SamplerStub
from mint_gateway.client import Client
from mint_gateway.dialling import dial
from tests.gateway.scene import BASE, LIMIT_S, Scene


@pytest.fixture(autouse=True)
def _exempt_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for exempting in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(exempting, raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_port_forward_on_this_machine_is_reached_directly(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    await scene.with_engine()
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    async with dial(f"{host}:{scene.gateway.port}", None) as channel:
        call = SamplerStub(channel).Generate(GenerateRequest(base_model=BASE, text="Ahoy"), timeout=LIMIT_S)
        assert [event async for event in call]


async def test_addresses_outside_the_cluster_are_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.get_running_loop().create_future()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set_result(await reader.readline())
        writer.close()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as listening:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        async with dial("mint.example:8470", None) as channel:
            channel.get_state(try_to_connect=True)
            assert (await asyncio.wait_for(asked, LIMIT_S)).startswith(b"CONNECT mint.example:8470 ")


async def test_an_invalid_address_is_refused_by_the_call() -> None:
    async with dial("[::1:8470", None) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await SamplerStub(channel).Generate(GenerateRequest(base_model=BASE, text="Ahoy"), timeout=LIMIT_S).read()


async def test_a_gateway_that_is_away_is_tried_again_soon_and_often() -> None:
    """By gRPC's own pauses, from a second to two minutes, a fifth attempt would take more than seven seconds."""
    tried, often = 0, asyncio.Event()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tried
        tried += await reader.read(3) == b"PRI"  # HTTP/2; the client also looks whether this port speaks TLS
        if tried >= 5:
            often.set()
        writer.close()

    async with (
        await asyncio.start_server(hang_up, "127.0.0.1", 0) as listening,
        Client(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", patience_s=60) as client,
    ):
        asking = asyncio.create_task(client.waves())
        await asyncio.wait_for(often.wait(), 7)
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
