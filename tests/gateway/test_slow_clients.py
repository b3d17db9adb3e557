"""Clients that keep their connection open and do not read their answer lose their place among the requests in flight,
and their connection."""

import asyncio
import json
import socket
from collections.abc import AsyncIterable
from contextlib import closing, suppress
from functools import partial
from typing import Any

import aiohttp
import grpc
import msgspec
import pytest

from mint_contracts import sampling_pb2
from mint_contracts.errors import Overloaded
from mint_contracts.sampling_pb2_grpc import SamplerStub
from mint_gateway.slow_clients import Writing
from tests.gateway.http_requests import TEXT, post
from tests.gateway.scene import BASE, LIMIT_S, LIMITS, Scene
from tests.gateway.scripted import ScriptedEngine
from tests.waiting import until

WORDS = ("word " * 100_000,) * 40  # more than unread sockets can buffer


@pytest.fixture
async def engine(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """An engine with long answers, behind an impatient gateway."""
    monkeypatch.setattr("mint_gateway.slow_clients.TAKE_S", 0.3)
    await scene.base()
    engine = await scene.engine("smollm2-0")
    engine.words = WORDS
    await scene.begin(engine, limits=msgspec.structs.replace(LIMITS, requests=1, connections=1))
    return engine


async def test_an_http_client_that_reads_nothing_is_cut_off(scene: Scene, engine: ScriptedEngine) -> None:
    with closing(asking(scene, stream=True)) as client:
        await its_place_is_anothers(scene, engine)
        assert b"[DONE]" not in await asyncio.to_thread(read_all, client)


async def test_one_that_asks_for_a_whole_answer_leaves_its_connection_to_others(
    scene: Scene, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_gateway.http.buffered_answer.MOST_BYTES", 64 << 20)
    with closing(asking(scene, stream=False)) as client:
        await asyncio.wait_for(engine.started.wait(), LIMIT_S)

        async def let_in() -> bool:
            async with aiohttp.ClientSession() as session, session.get(f"{scene.url}/v1/models") as answer:
                assert answer.status in (200, 503)
                return answer.status == 200

        await until(let_in)
        assert b'"finish_reason"' not in await asyncio.to_thread(read_all, client)


def asking(scene: Scene, *, stream: bool) -> socket.socket:
    """Return a connection on which a request was sent."""
    body = json.dumps({"model": BASE, "prompt": "Ahoy", "stream": stream}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    client = socket.create_connection(("127.0.0.1", scene.gateway.http_port))
    client.sendall(head.encode() + b"\r\n\r\n" + body)
    return client


async def its_place_is_anothers(scene: Scene, engine: ScriptedEngine) -> None:
    await asyncio.wait_for(engine.started.wait(), LIMIT_S)
    engine.words = ("Hello",)
    stub = scene.stub()

    async def answered() -> bool:
        try:
            return bool(
                [each async for each in stub.Generate(sampling_pb2.GenerateRequest(base_model=BASE, text="x"))]
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:  # as where the machine stalled for longer than TAKE_S
                assert "requests are in flight" in (error.details() or "")  # noqa: PT017
            return False

    await until(answered)


def read_all(client: socket.socket) -> bytes:
    client.settimeout(LIMIT_S)
    found = b""
    with suppress(ConnectionResetError):
        while part := client.recv(1 << 20):
            found += part
    return found


async def test_a_grpc_client_that_reads_nothing_is_cut_off(scene: Scene, engine: ScriptedEngine) -> None:
    call = scene.stub().Generate(sampling_pb2.GenerateRequest(base_model=BASE, text="Ahoy"))
    await its_place_is_anothers(scene, engine)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await asyncio.wait_for(read_events(call), LIMIT_S)
    assert error.value.code() is grpc.StatusCode.CANCELLED


async def read_events(call: AsyncIterable[sampling_pb2.GenerateEvent]) -> None:
    async for _ in call:
        pass


async def test_a_grpc_client_that_goes_while_it_is_sent_a_piece_is_one_that_cancels() -> None:
    """Sometimes gRPC reports a call's end to a write before it cancels the call."""
    begun = asyncio.Event()
    met: asyncio.Future[type[BaseException]] = asyncio.get_running_loop().create_future()

    async def goes_on(request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        try:
            await Writing(context).write(b"Ahoy")
        except BaseException as error:
            met.set_result(type(error))
            raise

    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Tell": grpc.unary_stream_rpc_method_handler(goes_on)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("told", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/told/Tell")
        call = ask(b"")
        await asyncio.wait_for(begun.wait(), LIMIT_S)
        call.cancel()
        assert await asyncio.wait_for(met, LIMIT_S) is asyncio.CancelledError
    await server.stop(None)


class Scoring(ScriptedEngine):
    """Begins each answer with as much as the log-probabilities of a long prompt."""

    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: sampling_pb2.GenerateRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        started = sampling_pb2.Started(base_model=self.base, prompt=[bytes(1 << 20)])
        await context.write(sampling_pb2.GenerateEvent(started=started))
        await context.write(sampling_pb2.GenerateEvent(chunk=sampling_pb2.Chunk()))
        await context.write(sampling_pb2.GenerateEvent(finished=sampling_pb2.Finished()))


async def test_what_tells_of_a_long_prompt_has_room_until_it_is_read(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the request was given up: gRPC keeps it for as long as its client likes."""
    monkeypatch.setattr("mint_gateway.slow_clients.TAKE_S", 0.3)
    monkeypatch.setattr("mint_gateway.answering.MOST_SCORES", 10 << 20)
    await scene.base()
    engine = await scene.engine("e-0", kind=Scoring)
    await scene.open()
    await scene.seen(engine)
    request = sampling_pb2.GenerateRequest(base_model=BASE, text="Ahoy")

    async def answered() -> bool:
        try:
            return bool(await scene.client.completions(request))
        except Overloaded as error:
            assert "MiB of prompts' log-probabilities" in str(error)  # noqa: PT017
            return False

    assert await answered()
    assert await answered(), "what was read has no room any more"
    counted = partial(scene.gateway.metrics.registry.get_sample_value, "mint_gateway_requests_total")
    async with grpc.aio.insecure_channel(scene.target, options=[("grpc.http2.bdp_probe", 0)]) as channel:
        unread = SamplerStub(channel).Generate(request)
        await until(lambda: counted({"code": "CANCELLED", "client": ""}) == 1)
        assert not await answered()
        status, body, _ = await post(scene, TEXT, {"model": BASE, "prompt": "Ahoy", "stream": True})
        assert (status, body["error"]["code"]) == (429, "Overloaded")
        unread.cancel()
        await until(answered)
