"""Each door has a limited number of connections, and closes idle ones but no others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from mint_contracts import errors
from mint_contracts.sampling_pb2 import GenerateRequest
from mint_contracts.transport import SERVER_OPTIONS
from mint_gateway.channels import Channels
from mint_gateway.client import Client
from mint_gateway.http import connections, door
from mint_gateway.security.door_security import DoorSecurity
from mint_gateway.server import Limits
from tests.gateway.http_requests import TEXT, post
from tests.gateway.scene import BASE, LIMIT_S, Scene
from tests.gateway.scripted import ScriptedEngine
from tests.gateway.secrets import Authority, mount
from tests.gateway.training_waves import Training, wave
from tests.waiting import until

IDLE_S = 0.5
BRIEF = Limits(idle_s=IDLE_S, farewell_s=0.0)
LIVE = b"GET /live HTTP/1.1\r\nHost: gateway\r\n\r\n"


class Knock:
    """A bare connection to a door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def heard(self, most: int = -1) -> bytes:
        """Return what arrives until the door closes the connection, or `most` bytes."""
        async with asyncio.timeout(LIMIT_S):
            try:
                return await self._reader.read(most)
            except ConnectionResetError:
                return b""

    async def is_alive(self) -> bool:
        """Return whether the door answers an HTTP request; the connection stays open."""
        self._writer.write(LIVE)
        async with asyncio.timeout(LIMIT_S):
            head = await self._reader.readuntil(b"\r\n\r\n")
            await self._reader.readexactly(len(b'{"live":true}'))
        return head.startswith(b"HTTP/1.1 200 ")

    def leave(self) -> None:
        self._writer.close()


@asynccontextmanager
async def knocking(*ports: int, host: str = "127.0.0.1") -> AsyncIterator[list[Knock]]:
    """Yield connections to these ports, opened one after another from this address of the machine's own."""
    async with AsyncExitStack() as stack:
        knocks = []
        for port in ports:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(host, 0))
            stack.callback(writer.close)
            knocks.append(Knock(reader, writer))
        yield knocks


async def get(scene: Scene, path: str, **options: Any) -> tuple[int, Any, str]:
    """Return the status, the JSON and Retry-After of a GET on a new connection."""
    async with aiohttp.ClientSession() as session, session.get(scene.url + path, **options) as answer:
        return answer.status, await answer.json(), answer.headers.get("Retry-After", "")


async def idle(scene: Scene) -> None:
    """Wait until each door has closed an idle connection that was opened after all existing ones."""
    async with knocking(scene.gateway.port, scene.gateway.http_port) as (grpc_door, http_door):
        assert b"connection idle" in await grpc_door.heard()
        assert await http_door.heard() == b""


async def test_a_grpc_connection_beyond_the_limit_is_closed_and_succeeds_when_another_ends(scene: Scene) -> None:
    await scene.base()
    await scene.begin(limits=Limits(connections=2, farewell_s=0.0))
    async with (
        knocking(*[scene.gateway.port] * 3) as (first, second, third),
        Client(scene.target, patience_s=3600) as patient,
    ):
        assert [bool(await each.heard(1)) for each in (first, second, third)] == [True, True, False]
        with pytest.raises(errors.Unavailable, match="Socket closed"):
            await scene.client.waves()
        asking = asyncio.create_task(patient.waves())
        first.leave()
        assert await asyncio.wait_for(asking, LIMIT_S) == []


async def test_an_http_connection_beyond_the_limit_is_told_to_retry_and_succeeds_when_another_ends(
    scene: Scene,
) -> None:
    await scene.base()
    await scene.begin(limits=Limits(connections=1, farewell_s=0.0))
    async with knocking(scene.gateway.http_port) as [first]:
        assert await first.is_alive()
        for path in ("/v1/models", "/v1/models/a", "/"):
            status, body, retry_after = await get(scene, path)
            assert (status, retry_after, body["error"]["code"]) == (503, "1", "Unavailable")
            assert "has reached its limit of connections; retry later" in body["error"]["message"]
        assert (await get(scene, "/live"))[0] == (await get(scene, "/health"))[0] == 200, "probes are let in"
        assert await first.is_alive()
        first.leave()

        async def let_in() -> bool:
            return (await get(scene, "/v1/models"))[0] == 200

        await until(let_in)


async def test_connections_that_are_told_to_retry_are_bounded_too(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_OUTSIDE", 1)
    monkeypatch.setattr(door, "OUTSIDE_S", IDLE_S)
    await scene.open(Limits(connections=1, farewell_s=0.0))
    async with knocking(*[scene.gateway.http_port] * 3) as (inside, outside, neither):
        assert await neither.heard() == b""
        assert await outside.heard() == b"", "it asked for nothing"
        assert await inside.is_alive()


async def test_silent_connections_of_an_address_leave_as_many_to_others(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_OUTSIDE", 4)
    monkeypatch.setattr(door, "OUTSIDE_S", LIMIT_S)
    await scene.open(Limits(connections=4, farewell_s=0.0))
    port = scene.gateway.http_port
    async with knocking(*[port] * 5) as greedy:
        assert await greedy[-1].heard() == b"", "two inside, two outside"
        async with knocking(port, host="127.0.0.2") as [other]:
            assert [await other.is_alive() for _ in range(2)] == [True, True], "inside, where connections are kept"
            assert [await each.is_alive() for each in greedy[:2]] == [True, True]
            async with knocking(port) as [another]:
                assert await another.is_alive(), "those that have asked are not silent"


async def test_a_client_without_a_key_keeps_no_connection(scene: Scene, tmp_path: Path) -> None:
    await scene.base()
    keys = mount(tmp_path / "keys", {"mine": b"key-of-mine"})
    await scene.begin(limits=BRIEF, security=DoorSecurity.by(None, keys))
    async with aiohttp.ClientSession() as session:
        for path in ("/live", "/health", "/", "/v1/models"):
            async with session.get(scene.url + path) as answer:
                assert answer.headers["Connection"] == "close", path
        async with session.get(scene.url + "/v1/models", headers={"Authorization": "Bearer key-of-mine"}) as answer:
            assert (answer.status, answer.headers.get("Connection")) == (200, None)


async def test_silent_connections_give_way_in_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "FIRST_S", 0.0)
    engine = await scene.with_engine(Limits(connections=3, farewell_s=0.0))
    engine.hold_before = asyncio.Event()
    asking = asyncio.create_task(post(scene, TEXT, {"model": BASE, "prompt": "Ahoy"}))
    await until(lambda: len(engine.seen) == 1)
    async with knocking(scene.gateway.http_port) as [silent]:

        async def let_in() -> bool:
            return (await get(scene, "/v1/models"))[0] == 200

        await until(let_in)
        assert await silent.heard() == b""
    engine.hold_before.set()
    assert (await asking)[0] == 200, "a request in flight does not"


async def test_connections_without_a_finished_tls_handshake_count(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "authority")
    security = DoorSecurity.by(mount(tmp_path / "tls", authority.certificate("gateway")), None)
    monkeypatch.setattr(connections, "HELLO_S", LIMIT_S)
    monkeypatch.setattr(door, "MOST_OUTSIDE", 0)
    await scene.open(Limits(connections=1, farewell_s=0.0), security)
    for port in (scene.gateway.port, scene.gateway.http_port):
        async with knocking(port, port) as (first, second):
            assert await second.heard() == b""
            first.leave()


async def test_connections_without_tls_free_their_place(scene: Scene, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    security = DoorSecurity.by(mount(tmp_path / "tls", authority.certificate("gateway")), None)
    await scene.base()
    await scene.begin(limits=Limits(connections=1, farewell_s=0.0), security=security)
    for _ in range(3):
        with pytest.raises(aiohttp.ClientError):
            await get(scene, "/live")
    by_tls = scene.url.replace("http://", "https://") + "/v1/models"
    async with aiohttp.ClientSession() as session, session.get(by_tls, ssl=False) as answer:
        assert answer.status == 200


async def test_a_listener_goes_on_after_running_out_of_descriptors(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, refused = asyncio.get_running_loop(), 0
    accept = loop.sock_accept

    async def fail_first(listening: Any) -> Any:
        nonlocal refused
        refused += 1
        if refused <= 2:
            raise OSError(24, "Too many open files")
        return await accept(listening)

    monkeypatch.setattr(loop, "sock_accept", fail_first)
    await scene.open()
    assert (await get(scene, "/live"))[0] == 200


async def test_requests_in_flight_keep_their_connections_however_silent(scene: Scene) -> None:
    engine = await scene.with_engine(BRIEF)
    engine.hold_before = asyncio.Event()
    by_http = asyncio.create_task(post(scene, TEXT, {"model": BASE, "prompt": "Ahoy"}))
    by_grpc = asyncio.create_task(scene.client.answer(GenerateRequest(text="Ahoy")))
    await until(lambda: len(engine.seen) == 2)
    await idle(scene)
    engine.hold_before.set()
    async with asyncio.timeout(LIMIT_S):
        assert (await by_grpc).text == "Hello there."
        status, answer, _ = await by_http
    assert (status, answer["choices"][0]["text"]) == (200, "Hello there.")


async def test_a_wave_that_is_watched_may_be_silent(scene: Scene) -> None:
    await scene.base()
    await scene.begin(limits=BRIEF)
    training = Training(scene)
    await training.declare(wave())
    updates = scene.client.watch("demo/w")
    assert (await anext(updates)).phase == "Training"
    await idle(scene)
    await training.declare(wave("Complete"))
    assert [progress.phase async for progress in updates] == ["Complete"]


async def test_a_client_whose_connection_was_idle_asks_again_without_an_error(scene: Scene) -> None:
    await scene.base()
    await scene.begin(limits=BRIEF)
    for _ in range(2):
        assert await scene.client.waves() == []
        await until(lambda: scene.client._connection.channel.get_state() is grpc.ChannelConnectivity.IDLE)


async def test_a_gateway_asks_an_engine_that_closed_their_idle_connection_again_without_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    brief = [*SERVER_OPTIONS, ("grpc.max_connection_idle_ms", int(1000 * IDLE_S))]
    monkeypatch.setattr("tests.gateway.scripted.SERVER_OPTIONS", brief)
    engine, used = ScriptedEngine(BASE, "e-0"), Channels()
    await engine.listen()
    used.keep([engine.address])

    def is_idle() -> bool:
        return used._entries[engine.address].channel.get_state() is grpc.ChannelConnectivity.IDLE

    for _ in range(2):
        async with used.use(engine.address) as stubs:
            events = [event async for event in stubs.sampler.Generate(GenerateRequest(base_model=BASE, text="Ahoy"))]
        assert events[-1].HasField("finished")
        await until(is_idle)
        assert not used.broken(engine.address)
    await used.close()
    await engine.deafen()
