"""Messages of many empty elements: a few bytes each on the wire, a hundred times that once they are parsed."""

import asyncio
import threading
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError

from mint_contracts.byte_budget import OWN_BYTES
from mint_contracts.catalog_pb2 import CatalogEntry, ListRequest, RegisterRequest, RetireRequest
from mint_contracts.entries import Entry
from mint_contracts.errors import InvalidRequest, Overloaded
from mint_contracts.sampling_pb2 import Chat, GenerateRequest, Message, SamplingParams, ToolCall
from mint_contracts.training_pb2 import ForwardBackwardRequest
from mint_contracts.training_pb2_grpc import TrainerStub
from mint_contracts.wire import from_rpc_error
from mint_gateway import answering, field_count
from mint_gateway.catalog import servicer as catalog
from mint_gateway.catalog.registration import PART_ENTRIES, Registration
from mint_gateway.field_count import ELEMENT_BYTES, MOST_BYTES, MOST_FIELDS, elements_of, memory, parsed
from mint_gateway.trainer import servicer as trainer
from tests.gateway.catalogs import opened
from tests.gateway.http_requests import CHAT, TEXT, get, post
from tests.gateway.scene import BASE, LIMIT_S, Scene
from tests.waiting import until

MANY = MOST_FIELDS + 1
TOO_MANY = "are too many: with them, the message has more than 65,536 fields; send fewer in one message"
START_GROUP, END_GROUP = b"\xa3\x06", b"\xa4\x06"  # of field 100, which no message has


def element(field: int, content: bytes = b"") -> bytes:
    """Return a field of text, or of a message, as it is sent."""
    size, rest = len(content), b""
    while size > 0x7F:
        size, rest = size >> 7, rest + bytes([size & 0x7F | 0x80])
    return bytes([field << 3 | 2]) + rest + bytes([size]) + content


CHATS, CALLS, STOPS, BIASES = (
    element(5, element(1) * MANY),
    element(5, element(1, element(3) * MANY)),
    element(6, element(7) * MANY),
    element(6, element(14) * MANY),
)


@pytest.mark.parametrize(
    ("method", "data", "subject"),
    [
        ("Sampler/Generate", CHATS, "chat.messages"),
        ("Sampler/Generate", CALLS, "chat.messages.tool_calls"),
        ("Sampler/Generate", STOPS, "sampling.stop"),
        ("Sampler/Generate", BIASES, "sampling.logit_bias"),
        ("Sampler/Generate", (element(4) + element(5)) * MANY, "tokens"),
        ("Trainer/ForwardBackward", element(3) * MANY, "examples"),
        ("Catalog/Register", element(3) * MANY, "entries"),
        ("Catalog/Register", element(3, element(4) * MANY), "entries.labels"),
        ("Catalog/Retire", element(2) * MANY, "names"),
    ],
)
async def test_a_message_of_too_many_fields_is_refused(scene: Scene, method: str, data: bytes, subject: str) -> None:
    await scene.open()
    async with grpc.aio.insecure_channel(scene.target) as channel:
        call: grpc.aio.StreamUnaryCall[bytes, bytes] = channel.stream_unary(f"/mint.v1.{method}")()
        await call.write(data)
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.wait_for(call, LIMIT_S)
    error = from_rpc_error(refused.value)
    assert isinstance(error, InvalidRequest)
    assert str(error) == f"{subject}: {TOO_MANY}"


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("Waves/WatchWave", "WatchWaveRequest"),
        ("Placement/Explain", "ExplainRequest"),
        ("Catalog/List", "ListRequest"),
        ("Trainer/GetPolicy", "GetPolicyRequest"),
    ],
)
async def test_only_calls_that_need_it_take_long_messages(scene: Scene, method: str, kind: str) -> None:
    """A watch would hold its request for hours, with whatever fields of no meaning it came with."""
    await scene.open()
    async with grpc.aio.insecure_channel(scene.target) as channel:
        call: Any = channel.unary_stream if method.endswith("WatchWave") else channel.unary_unary
        answer = call(f"/mint.v1.{method}")(element(15, bytes(MOST_BYTES - 3)))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.wait_for(answer.read() if method.endswith("WatchWave") else answer, LIMIT_S)
    error = from_rpc_error(refused.value)
    assert isinstance(error, InvalidRequest)
    assert str(error) == f"request: has 65,537 bytes, and a {kind} may have 65,536; shorten its texts"


async def test_names_that_are_retired_count_with_the_memory_they_take(
    scene: Scene, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "MOST_RETIRING", 1 << 20)
    client = await opened(scene, local)
    with pytest.raises(Overloaded, match="catalog: 1 MiB of names are being retired; retry later"):
        await client.retire([f"a/{number}" for number in range(7000)])
    assert await client.retire(["a/1"]) == ["a/1"]


async def test_it_is_refused_before_it_is_parsed() -> None:
    class Parsed(Exception):
        pass

    class Refusing:
        DESCRIPTOR = GenerateRequest.DESCRIPTOR

        @classmethod
        def FromString(cls, data: bytes) -> Any:  # noqa: N802 - as of messages
            raise Parsed

    with pytest.raises(InvalidRequest):
        await parsed(Refusing.FromString, CHATS)
    with pytest.raises(Parsed):
        await parsed(Refusing.FromString, element(5, element(1) * (MOST_FIELDS - 1)))


@pytest.mark.parametrize(
    "message",
    [
        GenerateRequest(chat=Chat(messages=[Message(role="user", content="Ahoy")] * 20_000)),
        RetireRequest(names=["team/adapter"] * 10_000),
        RegisterRequest(
            lines=b'{"name": "a/b"}\n' * 100_000,
            entries=[CatalogEntry(name="a/b", uri="s3://a/b", rank=8, labels={"tier": "gold"})] * 10_000,
        ),
        ListRequest(labels={"tier": "gold"}),
    ],
)
async def test_what_programs_send_is_parsed(message: Any) -> None:
    assert await parsed(type(message).FromString, message.SerializeToString()) == message


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(START_GROUP + element(5, b"\xff") + END_GROUP, id="a group that nobody knows"),
        pytest.param(b"\x8a\x00\x01a", id="a tag that is longer than it need be"),
        pytest.param(b"\xf8\x06\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", id="a long number"),
        pytest.param(b"\xf9\x06" + bytes(8) + b"\xfd\x06" + bytes(4), id="fixed numbers"),
    ],
)
async def test_no_field_before_hides_elements(before: bytes) -> None:
    GenerateRequest.FromString(before)  # is valid
    with pytest.raises(InvalidRequest, match=r"^chat\.messages: "):
        await parsed(GenerateRequest.FromString, before + CHATS)


@pytest.mark.parametrize("data", [b"\x2a", b"\xff" * 100, b"\x2a\x05a", b"\x2a\xff\xff\xff\xff\xff\x7f", b"\x07"])
async def test_what_is_no_message_is_left_to_the_parser(data: bytes) -> None:
    with pytest.raises(DecodeError):
        await parsed(GenerateRequest.FromString, data)


async def test_the_memory_of_a_message_is_that_of_its_elements_and_of_what_is_sent() -> None:
    call, sampling = ToolCall(id="1", name="f"), SamplingParams(stop=["a", "b"], logit_bias={1: 1.0})
    request = GenerateRequest(chat=Chat(messages=[Message(tool_calls=[call]), Message()]), sampling=sampling)
    elements = ["chat", "message", "call", "message", "sampling", "stop", "stop", "bias"]
    assert elements_of(request) == len(elements)
    arrived = await parsed(GenerateRequest.FromString, request.SerializeToString())
    assert memory(arrived) == request.ByteSize() + len(elements) * ELEMENT_BYTES
    arrived = await parsed(GenerateRequest.FromString, GenerateRequest(text="a" * 1000).SerializeToString())
    assert memory(arrived) == 1003


@pytest.mark.parametrize("door", ["http", "grpc"])
async def test_a_chat_of_many_messages_counts_with_the_memory_it_takes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    monkeypatch.setattr(answering, "MOST_BYTES", 1 << 20)
    await scene.with_engine()
    count = (answering.MOST_BYTES + OWN_BYTES) // ELEMENT_BYTES
    if door == "grpc":
        with pytest.raises(Overloaded, match="1 MiB of requests in flight; retry later"):
            await scene.client.answer(GenerateRequest(base_model=BASE, chat=Chat(messages=[Message()] * count)))
    else:
        chat = {"model": BASE, "messages": [{"role": "user", "content": ""}] * count}
        status, body, _ = await post(scene, CHAT, chat)
        assert (status, body["error"]["code"]) == (429, "Overloaded")


async def test_examples_and_their_tokens_count_with_the_memory_they_take(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "MOST_BYTES", 1 << 20)
    await scene.with_engine()
    tokens = element(1, b"\x01" * 60_000) + element(2, b"\x01" * 60_000)
    async with grpc.aio.insecure_channel(scene.target) as channel:
        for data in (element(3) * 7000, element(3, tokens)):
            request = ForwardBackwardRequest.FromString(element(1, b"acme/a") + data)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await TrainerStub(channel).ForwardBackward(request)
            assert isinstance(from_rpc_error(refused.value), Overloaded)


async def test_others_take_turns_while_many_entries_are_added() -> None:
    registration, turns = Registration("demo/base", None, None, stored=False), 0  # type: ignore[arg-type]

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    other = asyncio.create_task(take_turns())
    await registration.add(Entry(name=f"a/b{number}") for number in range(PART_ENTRIES * 4))
    other.cancel()
    assert registration.refused == PART_ENTRIES * 4
    assert turns > 1


@pytest.mark.parametrize("path", ["Sampler/Generate", "Catalog/Register"])
async def test_others_take_turns_while_many_fields_are_counted(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    counting, others_had_turns = threading.Event(), threading.Event()

    def count(data: bytes, kind: Any, most: int = MOST_FIELDS) -> int:
        if most == MOST_FIELDS:
            counting.set()
            assert others_had_turns.wait(LIMIT_S)
        return original(data, kind, most)

    original = field_count.count
    monkeypatch.setattr(field_count, "count", count)
    await scene.open()
    async with grpc.aio.insecure_channel(scene.target) as channel:
        call: grpc.aio.StreamUnaryCall[bytes, bytes] = channel.stream_unary(f"/mint.v1.{path}")()
        await call.write(CHATS if path == "Sampler/Generate" else element(3) * MANY)
        await until(counting.is_set)
        assert (await get(scene, "/live"))[0] == 200
        others_had_turns.set()
        with pytest.raises(grpc.aio.AioRpcError, match="are too many"):
            await asyncio.wait_for(call, LIMIT_S)


async def test_a_chat_by_http_has_no_more_messages_than_one_by_grpc(scene: Scene) -> None:
    await scene.with_engine()
    status, body, _ = await post(scene, CHAT, {"model": BASE, "messages": [{"role": "user", "content": ""}] * MANY})
    assert (status, body["error"]["message"]) == (400, f"chat.messages: {TOO_MANY}")


async def test_each_prompt_of_several_counts_with_the_memory_it_takes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "MOST_BYTES", 1 << 20)
    await scene.with_engine()
    bias = {str(token): 1.0 for token in range(300)}
    prompts = {"model": BASE, "prompt": ["Ahoy"] * 2, "logit_bias": bias}
    assert (await post(scene, TEXT, prompts))[0] == 200
    monkeypatch.setattr(field_count, "ELEMENT_BYTES", (1 << 20) // 150)
    assert (await post(scene, TEXT, prompts))[0] == 429
