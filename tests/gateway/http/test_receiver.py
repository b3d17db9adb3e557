"""A connection by HTTP holds little of what its client sends ahead, and loses none of it."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mint_gateway.http.receiver import MOST_AHEAD, PIECE
from tests.gateway.http_requests import TEXT
from tests.gateway.scene import BASE, LIMIT_S, Scene
from tests.waiting import until

LIVE = b"GET /live HTTP/1.1\r\nHost: gateway\r\n\r\n"
FIELD = b"X-Long: " + b"a" * 8000 + b"\r\n"


@asynccontextmanager
async def connection(scene: Scene) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", scene.gateway.http_port)
    try:
        async with asyncio.timeout(LIMIT_S):
            yield reader, writer
    finally:
        writer.close()


def request(prompt: str, *, zipped: bool = False, **more: object) -> bytes:
    body = json.dumps({"model": BASE, "prompt": prompt} | more).encode()
    body = gzip.compress(body) if zipped else body
    head = (
        f"POST {TEXT} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    return head.encode() + (b"Content-Encoding: gzip\r\n" if zipped else b"") + b"\r\n" + body


async def response(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return the next response's status and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head.split(b" ")[1], await reader.readexactly(int(length.split(b":")[1]))


@pytest.mark.parametrize("size", [100, 1 << 16, 1 << 20])
@pytest.mark.parametrize("zipped", [False, True])
async def test_requests_sent_ahead_are_answered_in_turn(scene: Scene, size: int, zipped: bool) -> None:
    """However they are cut, and also if a body is larger than what is read at once, or than it was."""
    engine = await scene.with_engine()
    engine.words, engine.repeats = (), True
    large = "large " * 200_000
    sent = request(large, zipped=zipped) + LIVE + request("second") + request("third")
    async with connection(scene) as (reader, writer):
        for _ in range(2):
            for at in range(0, len(sent), size):
                writer.write(sent[at : at + size])
                await writer.drain()
            answers = [await response(reader) for _ in range(4)]
            assert {status for status, _ in answers} == {b"200"}
            first, live, *others = [json.loads(body) for _, body in answers]
            assert live == {"live": True}
            assert [each["choices"][0]["text"] for each in (first, *others)] == [large, "second", "third"]


async def test_a_body_that_came_behind_an_earlier_request_is_read_with_its_own(scene: Scene) -> None:
    """Also if none of it was parsed with its head: then nothing that its reader takes lets the rest follow."""
    engine = await scene.with_engine()
    engine.words, engine.repeats = (), True
    first, (head, _, body) = request("first"), request("second").partition(b"\r\n\r\n")
    padding = b"a" * (PIECE - len(first + head + b"\r\nX-Long: \r\n\r\n"))
    async with connection(scene) as (reader, writer):
        writer.write(first + head + b"\r\nX-Long: " + padding + b"\r\n\r\n" + body)
        answers = [json.loads((await response(reader))[1]) for _ in range(2)]
    assert [each["choices"][0]["text"] for each in answers] == ["first", "second"]


@pytest.mark.parametrize("before", [b"", LIVE])
async def test_a_head_that_is_too_long_is_refused_before_it_is_complete(scene: Scene, before: bytes) -> None:
    await scene.open()
    async with connection(scene) as (reader, writer):
        writer.write(before)
        if before:
            assert (await response(reader))[0] == b"200"
        writer.write(b"GET /live HTTP/1.1\r\n" + FIELD * (1 + MOST_AHEAD // len(FIELD)))
        assert (await response(reader))[0] == b"431"
        assert await reader.read() == b""


async def test_a_client_that_sends_too_much_before_its_turn_is_left_once_it_is_answered(scene: Scene) -> None:
    engine = await scene.with_engine()
    engine.hold_before = asyncio.Event()
    async with connection(scene) as (reader, writer):
        writer.write(request("first"))
        await until(lambda: len(engine.seen) == 1)
        for _ in range(1 + MOST_AHEAD // len(LIVE)):
            writer.write(LIVE)
            await writer.drain()
        engine.hold_before.set()
        assert (await response(reader))[0] == b"200"
        assert await reader.read() == b""


async def test_a_refusal_reaches_a_client_that_still_sends_its_body(scene: Scene) -> None:
    await scene.open()
    async with connection(scene) as (reader, writer):
        writer.write(b"POST /nothing HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1000000\r\n\r\n")
        writer.write(b"a" * 500_000)
        assert (await response(reader))[0] == b"404"
        writer.write(b"a" * 500_000 + LIVE)
        assert (await response(reader))[0] == b"200"
