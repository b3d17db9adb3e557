"""Either end of a call notices that its peer has vanished silently, leaving the connection open."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
import pytest

from mint_contracts import sampling_pb2
from mint_contracts.errors import Unavailable
from mint_contracts.sampling_pb2_grpc import SamplerStub
from mint_contracts.transport import SERVER_OPTIONS
from mint_gateway import channels, dialling
from mint_gateway.channels import Channels
from mint_gateway.client import Client, question
from tests.gateway.keepalive import sooner
from tests.gateway.scene import BASE, LIMIT_S
from tests.gateway.scripted import ScriptedEngine
from tests.relay import Relay, relaying

if TYPE_CHECKING:
    from mint_contracts.sampling_pb2_grpc import SamplerAsyncStub

    Call = grpc.aio.UnaryStreamCall[sampling_pb2.GenerateRequest, sampling_pb2.GenerateEvent]


@pytest.fixture
async def engine(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedEngine]:
    """An engine that begins to answer and then hangs."""
    monkeypatch.setattr("tests.gateway.scripted.SERVER_OPTIONS", sooner(SERVER_OPTIONS))
    monkeypatch.setattr(channels, "_OPTIONS", sooner(channels._OPTIONS))
    monkeypatch.setattr(dialling, "_OPTIONS", sooner(dialling._OPTIONS, 90))
    engine = ScriptedEngine(BASE, "smollm2-0")
    engine.hold_before = asyncio.Event()
    await engine.listen()
    yield engine
    await engine.deafen()


async def begun(stub: "SamplerAsyncStub", relay: Relay) -> "Call":
    """Return a call whose first event has arrived, and on which nothing arrives any more."""
    call = stub.Generate(sampling_pb2.GenerateRequest(base_model=BASE, text="Ahoy"))
    event = await call.read()
    assert isinstance(event, sampling_pb2.GenerateEvent)
    relay.fault = "silent"
    return call


async def test_a_gateway_notices_that_an_engine_has_vanished(engine: ScriptedEngine) -> None:
    used = Channels()
    with relaying(engine.address) as relay:
        async with used.use(f"127.0.0.1:{relay.port}") as stubs:
            call = await begun(stubs.sampler, relay)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await asyncio.wait_for(call.read(), LIMIT_S / 2)
        await used.close()
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_engine_notices_that_a_gateway_has_vanished(engine: ScriptedEngine) -> None:
    with relaying(engine.address) as relay:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{relay.port}") as channel:
            stub: SamplerAsyncStub = SamplerStub(channel)
            await begun(stub, relay)
            await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S / 2)


async def test_a_client_notices_that_a_gateway_has_vanished(engine: ScriptedEngine) -> None:
    with relaying(engine.address) as relay:
        async with Client(f"127.0.0.1:{relay.port}", patience_s=0) as client:
            events = client.ask(question("Ahoy", base_model=BASE))
            await anext(events)
            relay.fault = "silent"
            with pytest.raises(Unavailable, match="ping timeout"):
                await asyncio.wait_for(anext(events), LIMIT_S / 2)
