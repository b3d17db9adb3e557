"""gRPC requests that do not arrive completely: they take little memory, end in time, and hold up no other client."""

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from mint_contracts.errors import InvalidRequest, Overloaded, Unavailable
from mint_contracts.sampling_pb2 import GenerateRequest
from mint_contracts.transport import MOST_TOKEN_BYTES
from mint_gateway import arrivals
from mint_gateway.arrivals import Places
from mint_gateway.client import Client, question
from mint_gateway.security.door_security import DoorSecurity
from tests.gateway.http_requests import get
from tests.gateway.scene import BASE, LIMIT_S, Scene
from tests.gateway.secrets import mount
from tests.relay import relaying
from tests.waiting import until

GENERATE = "/mint.v1.Sampler/Generate"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
KEYS = {"slow": b"key-of-slow", "quick": b"key-of-quick"}
UNREAD = 64 << 10  # what gRPC takes of a stream that nobody reads
LONG = GenerateRequest(base_model=BASE, text="a" * (1 << 20))

DATA, HEADERS, RESET, SETTINGS, PING, WINDOW = 0, 1, 3, 4, 6, 8
ACK = END = 1
END_HEADERS = 4


class Trickler:
    """A client of HTTP/2's frames (RFC 9113) that sends requests except for their last bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, key: bytes) -> None:
        self._reader, self._writer, self._path, self._key = reader, writer, path, key
        self._room, self._stream_room = 65_535, 65_535
        self._rooms: dict[int, int] = {}
        self.sent: Counter[int] = Counter()  # bytes by stream
        self.ended: set[int] = set()
        self._more = asyncio.Event()

    def frame(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self._writer.write(struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload)

    async def send(self, streams: int, size: int) -> None:
        """Send all but the last bytes of a request of `size` on each of these streams, as far as they are taken."""
        await asyncio.gather(*(self._send(1 + 2 * number, size) for number in range(streams)))

    async def _send(self, stream: int, size: int) -> None:
        fields = {":method": "POST", ":scheme": "http", ":path": self._path, ":authority": "gateway"}
        fields |= {"te": "trailers", "content-type": "application/grpc"}
        fields |= {"authorization": f"Bearer {self._key.decode()}"}
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
        self.frame(HEADERS, END_HEADERS, stream, block)
        self._rooms[stream], left = self._stream_room, b"\0" + struct.pack(">I", size) + bytes(size - 100)
        while left and stream not in self.ended:
            count = min(len(left), 16_384, self._rooms[stream], self._room)
            if count <= 0:
                self._more.clear()
                await self._more.wait()
                continue
            self.frame(DATA, 0, stream, left[:count])
            self._rooms[stream], self._room, left = self._rooms[stream] - count, self._room - count, left[count:]
            self.sent[stream] += count
            await self._writer.drain()

    async def listen(self) -> None:
        while True:
            head = await self._reader.readexactly(9)
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
            if kind == SETTINGS and not flags & ACK:
                for number, value in struct.iter_unpack(">HI", payload):
                    if number == 4:  # the room that a new stream has
                        self._rooms = {each: room + value - self._stream_room for each, room in self._rooms.items()}
                        self._stream_room = value
                self.frame(SETTINGS, ACK, 0)
            elif kind == PING and not flags & ACK:
                self.frame(PING, ACK, 0, payload)
            elif kind == WINDOW and stream in self._rooms:
                self._rooms[stream] += int.from_bytes(payload, "big")
            elif kind == WINDOW and not stream:
                self._room += int.from_bytes(payload, "big")
            elif kind == RESET or (kind == HEADERS and flags & END):
                self.ended.add(stream)
            self._more.set()


def _received(client: Trickler) -> list[int]:
    """Return the streams of which more was received than of one that nobody reads."""
    return [stream for stream, size in client.sent.items() if size > 2 * UNREAD]


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


@asynccontextmanager
async def trickling(scene: Scene, path: str, streams: int, key: bytes = b"") -> AsyncIterator[Trickler]:
    """Send this many requests on one connection, each of them but for its last bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", scene.gateway.port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    client = Trickler(reader, writer, path, key)
    client.frame(SETTINGS, 0, 0)
    tasks = [asyncio.create_task(each) for each in (client.listen(), client.send(streams, MOST_TOKEN_BYTES - 1))]
    try:
        yield client
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        writer.close()


@pytest.mark.parametrize("path", [GENERATE, HEALTH, REFLECTION])
async def test_few_requests_arrive_at_a_time(scene: Scene, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(arrivals, "PLACES", 4)
    monkeypatch.setattr(arrivals, "OPEN_PLACES", 4)
    await scene.with_engine()
    async with trickling(scene, path, streams=8) as client:
        await until(lambda: len(client.sent) == 8 and len(_received(client)) >= 2)
        assert (await get(scene, "/live"))[0] == 200
        assert len(_received(client)) == 2, "as many as it leaves free"
        assert sum(client.sent.values()) < 2 * MOST_TOKEN_BYTES + 7 * UNREAD


@pytest.mark.parametrize("path", [GENERATE, HEALTH, REFLECTION])
async def test_requests_that_do_not_arrive_end(scene: Scene, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(arrivals, "ARRIVAL_S", 0.05)
    monkeypatch.setattr(arrivals, "OPEN_ARRIVAL_S", 0.05)
    await scene.with_engine()
    async with trickling(scene, path, streams=40) as client:
        await until(lambda: len(client.ended) == 40)
    assert (await scene.client.answer(question("Ahoy", raw=True), timeout_s=LIMIT_S)).text


async def test_a_client_whose_requests_do_not_arrive_holds_up_no_other(scene: Scene, tmp_path: Path) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    security = DoorSecurity.by(None, mount(tmp_path / "keys", KEYS), None)
    await scene.begin(engine, security=security, key="key-of-quick")
    async with AsyncExitStack() as stack:
        slow = await stack.enter_async_context(trickling(scene, GENERATE, 40, KEYS["slow"]))
        await until(lambda: len(_received(slow)) >= arrivals.PLACES // 2)
        for _ in range(3):
            assert (await scene.client.answer(question("Ahoy", raw=True), timeout_s=LIMIT_S)).text


async def test_requests_and_answers_are_as_ever(scene: Scene) -> None:
    """A large request arrives; one beyond the size limit, and a call without any, are refused with a reason."""
    await scene.with_engine()
    async with grpc.aio.insecure_channel(scene.target) as channel:
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()
        empty: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(GENERATE)()
        await empty.done_writing()
        with pytest.raises(grpc.aio.AioRpcError, match="request: is missing; send one"):
            await empty.read()
    async with Client(scene.target, patience_s=0.0) as client:
        long = GenerateRequest(base_model=BASE, text="a" * (3 << 20))
        assert (await client.answer(long, timeout_s=LIMIT_S)).text
        too_long = GenerateRequest(base_model=BASE, text="a" * MOST_TOKEN_BYTES)
        with pytest.raises(InvalidRequest, match=rf"larger than max .* vs\. {MOST_TOKEN_BYTES}\)"):
            await client.answer(too_long, timeout_s=LIMIT_S)


async def test_a_request_that_takes_too_long_can_be_sent_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "ARRIVAL_S", 0.2)
    await scene.with_engine()
    with relaying(scene.target) as relay:
        relay.fault, relay.freely = "stuck", 2 * UNREAD
        async with Client(f"127.0.0.1:{relay.port}", patience_s=0.0) as client:
            with pytest.raises(Unavailable, match=r"request: did not arrive in full within 0\.2 s; send it again"):
                await client.answer(LONG, timeout_s=LIMIT_S)
    counted = scene.gateway.metrics.registry.get_sample_value
    assert counted("mint_gateway_requests_total", {"code": "UNAVAILABLE", "client": ""}) == 1, "as any other failure"


async def test_a_trainer_call_refused_on_arrival_is_counted_and_logged_as_any_other(scene: Scene) -> None:
    await scene.with_engine()
    counted = scene.gateway.metrics.registry.get_sample_value
    with capture_logs() as logs, pytest.raises(InvalidRequest, match="may have 65,536; shorten its texts"):
        await scene.client.create_policy("a" * 70_000)
    [line] = [line for line in logs if line["event"] == "training_call"]
    assert (line["call"], line["code"]) == ("CreatePolicy", "INVALID_ARGUMENT")
    labels = {"call": "CreatePolicy", "code": "INVALID_ARGUMENT", "client": ""}
    assert counted("mint_gateway_training_calls_total", labels) == 1


async def test_slow_requests_wait_for_those_before_them(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is refused because another takes long."""
    monkeypatch.setattr(arrivals, "PLACES", 2)
    await scene.with_engine()
    with relaying(scene.target) as relay:
        relay.fault = "slow"
        async with Client(f"127.0.0.1:{relay.port}", patience_s=0.0) as client:
            for answer in await asyncio.gather(*(client.answer(LONG, timeout_s=LIMIT_S) for _ in range(4))):
                assert answer.text


async def test_an_idle_stream_of_reflection_ends_well(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "IDLE_S", LIMIT_S)
    await scene.with_engine()
    async with grpc.aio.insecure_channel(scene.target) as channel:
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        for _ in range(2):
            await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            assert (await stream.read()).list_services_response.service
        monkeypatch.setattr(arrivals, "IDLE_S", 0.05)
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert (await stream.read()).list_services_response.service
        async with asyncio.timeout(LIMIT_S):
            assert await stream.read() is grpc.aio.EOF
        assert await stream.code() == grpc.StatusCode.OK


async def test_a_client_takes_as_many_places_as_it_leaves_free_and_its_requests_wait_in_order() -> None:
    places, go_on, order = Places(4), asyncio.Event(), list[str]()

    async def arrive(client: str, name: str) -> None:
        async with places.place(client):
            order.append(name)
            await go_on.wait()

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
            group.create_task(arrive(name[0], name))
        for _ in range(10):
            await asyncio.sleep(0)
        assert order == ["a1", "a2", "b1", "c1"]
        go_on.set()
    assert sorted(order[4:]) == ["a3", "a4", "b2"]
    assert order.index("a3") < order.index("a4")


async def test_a_request_that_gets_no_place_in_time_is_refused_and_leaves_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arrivals, "WAIT_S", 0.01)
    places = Places(2)
    async with places.place("a"):
        with pytest.raises(Overloaded, match="too many requests are still arriving; retry later"):
            async with places.place("a"):
                pass
    async with asyncio.timeout(LIMIT_S), places.place("a"):
        pass


async def test_clients_take_turns() -> None:
    places, order = Places(1), list[str]()

    async def arrive(client: str) -> None:
        async with places.place(client):
            order.append(client)

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group, places.place("a"):
        for client in "aaabbc":
            group.create_task(arrive(client))
        await asyncio.sleep(0)
    assert "".join(order) == "abcaba"


async def test_a_client_has_as_much_of_the_line_as_it_leaves_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "WAITING", 4)
    places, order = Places(1), list[str]()

    async def arrive(client: str) -> None:
        async with places.place(client):
            order.append(client)

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        async with places.place("a"):
            for client in "aab":
                group.create_task(arrive(client))
            await asyncio.sleep(0)
            for client in "ab":
                with pytest.raises(Overloaded, match="still arriving"):
                    await arrive(client)
        await arrive("d")
    assert sorted(order) == ["a", "a", "b", "d"]
