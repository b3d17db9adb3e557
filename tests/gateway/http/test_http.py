"""The HTTP door, used by OpenAI's own client and by a bare one."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import openai
import pytest

from mint_contracts import errors
from mint_contracts.records import Held, Tier
from mint_contracts.sampling_pb2 import GenerateRequest
from mint_contracts.source import Source
from mint_gateway.http import door
from mint_gateway.server import Limits
from tests.gateway.http_requests import CHAT, MODELS, TEXT, get, post
from tests.gateway.scene import BASE, CREATED, PATIENT, PIRATE, Scene
from tests.gateway.scripted import ScriptedEngine
from tests.waiting import until


@pytest.fixture
async def engine(scene: Scene) -> ScriptedEngine:
    """An engine behind the gateway that holds demo/pirate."""
    await scene.base()
    engine = await scene.engine("e-0")
    await engine.hold("demo/pirate", PIRATE, Tier.DEVICE)
    await scene.place("demo/pirate", "e-0")
    await scene.begin(engine)
    return engine


@pytest.fixture
async def client(scene: Scene, engine: ScriptedEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_a_chat_with_an_adapter_is_answered_whole(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    answer = await client.chat.completions.create(
        model="demo/pirate", messages=[{"role": "user", "content": "Ahoy?"}], max_tokens=7, temperature=0, n=2
    )
    assert [choice.message.content for choice in answer.choices] == ["Hello there.", "1Hello1 there1."]
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    assert (answer.model, answer.system_fingerprint) == ("demo/pirate", "sha256:e-0-demo/pirate")
    assert answer.usage
    assert answer.usage.completion_tokens == 6
    [asked] = engine.seen
    assert answer.id == f"chatcmpl-{asked.request_id}"
    assert (asked.base_model, asked.adapter) == (BASE, "demo/pirate")
    assert [(message.role, message.content) for message in asked.chat.messages] == [("user", "Ahoy?")]
    assert (asked.sampling.max_tokens, asked.sampling.temperature, asked.sampling.n) == (7, 0, 2)


async def test_a_chat_that_the_assistant_was_last_in_is_told_from_there(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    """As vLLM does with `echo`; a last message of the user is not echoed."""
    user, reply = {"role": "user", "content": "Ahoy?"}, {"role": "assistant", "content": "So: "}
    tool = {"type": "function", "function": {"name": "sail"}}
    for messages, tools, before in (([user, reply], [], "So: "), ([user, reply], [tool], "So: "), ([user], [], "")):
        chat: Any = {"model": BASE, "messages": messages, "tools": tools, "extra_body": {"echo": True}}
        answer = await client.chat.completions.create(**chat)
        assert answer.choices[0].message.content == f"{before}Hello there."
        pieces = [piece async for piece in await client.chat.completions.create(**chat, stream=True)]
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == f"{before}Hello there."


async def test_a_text_is_completed_by_the_bare_base(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    answer = await client.completions.create(model=BASE, prompt="Ahoy", seed=-1, stop="\n", logprobs=2)
    assert (answer.choices[0].text, answer.system_fingerprint) == ("Hello there.", None)
    [asked] = engine.seen
    assert (asked.base_model, asked.adapter, asked.text) == (BASE, "", "Ahoy")
    assert (asked.sampling.temperature, asked.sampling.seed, asked.sampling.logprobs) == (1, 2**64 - 1, 2)
    assert list(asked.sampling.stop) == ["\n"]


async def test_a_stream_tells_who_speaks_then_words_then_the_end_then_counts(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="demo/pirate",
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "Ahoy?", "prompt_cache_breakpoint": {"mode": "explicit"}}],
            }
        ],
        stream=True,
        stream_options={"include_usage": True},
    )
    pieces = [piece async for piece in stream]
    deltas = [piece.choices[0].delta for piece in pieces if piece.choices]
    assert [delta.role for delta in deltas] == ["assistant", None, None, None, None]
    assert [delta.content for delta in deltas] == ["", "Hello", " there", ".", None]
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices] == [None, None, None, None, "stop"]
    assert pieces[-1].usage
    assert pieces[-1].usage.completion_tokens == 3
    assert len({piece.id for piece in pieces}) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [TEXT, CHAT])
async def test_an_answer_and_each_piece_of_it_bear_the_second_in_which_it_was_begun(
    scene: Scene, engine: ScriptedEngine, path: str, stream: bool
) -> None:
    engine.hold_before, asked = asyncio.Event(), {"model": BASE, "stream": stream}
    asked |= {"messages": [{"role": "user", "content": "Ahoy"}]} if path == CHAT else {"prompt": "Ahoy"}
    before = int(time.time())
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.post(scene.url + path, json=asked))
        await asyncio.wait_for(engine.started.wait(), 60)
        begun = int(time.time())
        await until(lambda: int(time.time()) > begun)
        engine.hold_before.set()
        async with await asyncio.wait_for(asking, 60) as answer:
            lines = (await answer.text()).splitlines()
    pieces = [line.removeprefix("data: ") for line in lines if line and not line.endswith("[DONE]")]
    assert len(pieces) == (1 if not stream else 5 if path == CHAT else 4)
    assert {before <= json.loads(piece)["created"] <= begun for piece in pieces} == {True}
    assert len({json.loads(piece)["created"] for piece in pieces}) == 1


async def test_words_come_as_they_are_made(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.hold_after = 2
    stream = await client.completions.create(model=BASE, prompt="Ahoy", stream=True)
    texts = stream.__aiter__()
    assert [(await anext(texts)).choices[0].text for _ in range(2)] == ["Hello", " there"]
    await stream.close()


async def test_a_stream_whose_request_waits_for_its_turn_again_has_comments(
    scene: Scene, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies would cut it: an engine may give a request's place to others for minutes."""
    monkeypatch.setattr("mint_gateway.http.stream.QUIET_S", 0.01)
    engine.hold_after = 2
    async with (
        asyncio.timeout(60),
        aiohttp.ClientSession() as session,
        session.post(scene.url + TEXT, json={"model": BASE, "prompt": "Ahoy", "stream": True}) as answer,
    ):
        await answer.content.readuntil(b'" there"')
        await answer.content.readuntil(b"\n\n: generating\n\n")


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_goes_away_ends_the_engines_work(
    scene: Scene, client: openai.AsyncOpenAI, engine: ScriptedEngine, streamed: bool
) -> None:
    engine.hold_after = 1
    asking = asyncio.create_task(post(scene, TEXT, {"model": BASE, "prompt": "Ahoy", "stream": streamed}))
    await asyncio.wait_for(engine.started.wait(), 60)
    asking.cancel()
    await asyncio.wait_for(engine.cancelled.wait(), 60)


async def test_a_refusal_has_its_status_and_says_when_to_come_back(scene: Scene, engine: ScriptedEngine) -> None:
    engine.refuse = errors.Overloaded("engine 'e-0'", "its queue is full", retry_after_s=1.2)
    for stream in (False, True):
        status, body, headers = await post(scene, TEXT, {"model": BASE, "prompt": "Ahoy", "stream": stream})
        assert (status, headers["Retry-After"]) == (429, "2")
        assert headers["X-Request-Id"] == engine.seen[-1].request_id, "whoever runs the gateway finds it in the log"
        assert body["error"]["code"] == "Overloaded"
        assert "its queue is full" in body["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_too_long_has_the_code_of_openais(
    client: openai.AsyncOpenAI, engine: ScriptedEngine, stream: bool
) -> None:
    """By this code, clients know that they must drop some of the chat's history."""
    message = "This model's maximum context length is 8 tokens"
    engine.refuse = errors.PromptTooLong("", message)
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(model=BASE, prompt="Ahoy", stream=stream)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.body["message"] == message  # type: ignore[index]


async def test_an_unknown_adapter_is_not_found_by_name(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="demo/nobody"):
        await client.completions.create(model="demo/nobody", prompt="Ahoy")


async def test_an_answer_that_breaks_off_ends_in_an_error_not_in_silence(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.hold_after = 1
    stream = await client.completions.create(model=BASE, prompt="Ahoy", stream=True)
    texts = stream.__aiter__()
    assert (await anext(texts)).choices[0].text == "Hello"
    await engine.deafen()
    with pytest.raises(openai.APIError, match="ended while it was answering"):
        await anext(texts)


BAD: list[tuple[str, object, str]] = [
    (TEXT, b"{", "body: is invalid"),
    (TEXT, [], "Expected `object`"),
    (TEXT, {"prompt": "Ahoy"}, "missing required field `model`"),
    (TEXT, {"model": BASE}, "missing required field `prompt`"),
    (
        TEXT,
        {"model": BASE, "prompt": "Ahoy", "max_tokens": 0},
        r"max_tokens: is 0.*set echo, or ask for at least one token",
    ),
    (TEXT, {"model": BASE, "prompt": "Ahoy", "max_tokens": -1}, r"max_tokens"),
    (CHAT, {"model": BASE, "messages": [{"role": "user", "content": "a"}], "max_tokens": 0}, r"max_tokens"),
    (TEXT, {"model": BASE, "prompt": "Ahoy", "max_tokens": 2**40}, r"max_tokens"),
    (TEXT, {"model": BASE, "prompt": "Ahoy", "repetition_penalty": 0}, "repetition_penalty"),
    (TEXT, {"model": BASE, "prompt": "Ahoy", "wings": 2}, "unknown field `wings`"),
    (TEXT, {"model": BASE, "prompt": "Ahoy", "suffix": "there"}, "suffix: is not supported"),
    (
        TEXT,
        {"model": BASE, "prompt": "Ahoy", "logit_bias": {"one": 1}},
        "logit_bias: names 'one', which is not a token ID",
    ),
    (TEXT, {"model": BASE, "prompt": "Ahoy", "logit_bias": {"1": "a"}}, "logit_bias"),
    (TEXT, {"model": BASE, "prompt": "Ahoy", "response_format": {"type": "xml"}}, r"xml.*response_format\.type"),
    (TEXT, {"model": BASE, "prompt": "Ahoy", "response_format": {"type": "json_schema"}}, "field `json_schema`"),
    (
        TEXT,
        {"model": BASE, "prompt": "Ahoy", "response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "missing required field `schema`",
    ),
    (TEXT, {"model": BASE, "prompt": "Ahoy", "structured_outputs": {"choice": ["a"]}}, "unknown field `choice`"),
    (
        TEXT,
        {"model": BASE, "prompt": "Ahoy", "structured_outputs": {"regex": "a", "json": "{}"}},
        "response_format: and structured_outputs ask for more than one format",
    ),
    (TEXT, {"model": BASE, "prompt": [1, "a"]}, "prompt: mixes single tokens with whole prompts"),
    (TEXT, {"model": BASE, "prompt": [1, -1]}, "prompt"),
    (CHAT, {"model": BASE, "messages": []}, "messages"),
    (CHAT, {"model": BASE, "messages": [{"role": "user", "content": None}]}, r"messages\[0\]\.content"),
    (CHAT, {"model": BASE, "messages": [{"role": "user", "content": [{"type": "image", "text": ""}]}]}, "'image'"),
    *(
        (CHAT, {"model": BASE, "messages": [{"role": "user", "content": [{"type": kind, kind: {}}]}]}, message)
        for kind in ("image_url", "video_url", "input_audio", "file", "refusal")
        for message in [rf"messages\[0\]\.content\[0\]: is of type '{kind}'; only text is supported"]
    ),
    (CHAT, {"model": BASE, "messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"text: is missing"),
    (CHAT, {"model": BASE, "messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "needs logprobs"),
    (
        CHAT,
        {"model": BASE, "messages": [{"role": "user", "content": "a"}], "tools": [{}]},
        r"`function` .*\$\.tools\[0\]",
    ),
    (TEXT, {"model": BASE, "prompt": "a", "tools": [{}]}, "tools: is not supported"),
    (TEXT, b'{"model": "' + b"a" * 1_000_000 + b'", "prompt": ""}', "is not a valid name"),
    (TEXT, b'{"model": "\\ud800", "prompt": ""}', "body"),
    (TEXT, b"[" * 100_000, "body"),
]


@pytest.mark.parametrize(("path", "body", "says"), BAD)
async def test_bad_input_is_one_clear_error(
    scene: Scene, engine: ScriptedEngine, path: str, body: object, says: str
) -> None:
    status, answer, _ = await post(scene, path, body)
    assert status == 400
    assert re.search(says, answer["error"]["message"]), answer
    assert answer["error"]["type"] == "invalid_request_error"
    assert not engine.seen


async def test_fields_that_only_describe_the_client_are_ignored(scene: Scene, engine: ScriptedEngine) -> None:
    body: dict[str, object] = {
        "model": BASE,
        "prompt": [[1, 2]],
        "user": "me",
        "n": None,
        "presence_penalty": 0,
        "logit_bias": {},
    }
    status, _, headers = await post(scene, TEXT, body, X_Request_Id="mine")
    assert (status, headers["X-Request-Id"]) == (200, "mine")
    [asked] = engine.seen
    assert (asked.request_id, list(asked.tokens.ids)) == ("mine", [1, 2])


async def test_the_bases_name_says_whose_adapter_is_meant(scene: Scene, engine: ScriptedEngine) -> None:
    await scene.base("demo/other")
    other = await scene.engine("o-0", base="demo/other")
    await other.hold("demo/pirate", PIRATE, Tier.DEVICE)
    await scene.place("demo/pirate", "o-0", base="demo/other")
    await scene.seen(engine, other)
    asked = {"model": "demo/pirate", "prompt": "Ahoy"}
    status, answer, _ = await post(scene, TEXT, asked)
    assert status == 400
    assert "name one of demo/other, demo/smollm2" in answer["error"]["message"]
    assert (await post(scene, TEXT, asked | {"base_model": "demo/other"}))[0] == 200
    assert (other.seen[0].base_model, other.seen[0].adapter) == ("demo/other", "demo/pirate")


async def test_requests_beyond_the_limit_of_both_doors_are_refused(scene: Scene) -> None:
    engine = await scene.with_engine(Limits(requests=1, farewell_s=0.0))
    engine.hold_before = asyncio.Event()
    asking = asyncio.create_task(scene.client.answer(GenerateRequest(text="Ahoy")))
    await asyncio.wait_for(engine.started.wait(), 60)
    assert (await post(scene, TEXT, {"model": BASE, "prompt": "Ahoy"}))[0] == 429
    engine.hold_before.set()
    await asking


async def test_models_are_bases_and_what_waves_serve_a_page_at_a_time(
    scene: Scene, client: openai.AsyncOpenAI
) -> None:
    assert [(model.id, model.object, model.created) async for model in client.models.list()] == [
        ("demo/pirate", "model", 0),
        (BASE, "model", CREATED),
    ]
    status, first = await get(scene, f"{MODELS}?limit=1")
    assert (status, first["last_id"], first["has_more"]) == (200, "demo/pirate", True)
    assert first["data"][0]["parent"] == BASE
    status, second = await get(scene, f"{MODELS}?limit=1&after=demo/pirate")
    assert (status, second["last_id"], second["has_more"]) == (200, BASE, False)
    assert (await client.models.retrieve("demo/pirate")).id == "demo/pirate"
    for path, refused in (("/demo/nobody", 404), ("?limit=0", 400), ("?limit=many", 400)):
        assert (await get(scene, MODELS + path))[0] == refused


async def test_published_revisions_are_models_too(
    scene: Scene, engine: ScriptedEngine, client: openai.AsyncOpenAI
) -> None:
    taught = Source(f"file:///training/revisions/acme/taught/.published/{CREATED * 1000:016}-00000001")
    engine.held["acme/taught"] = Held("acme/taught", taught, Tier.HOST, published=True)
    await engine.report()
    await scene.seen(engine)
    assert "acme/taught" in [model.id async for model in client.models.list()]
    status, body = await get(scene, f"{MODELS}/acme/taught")
    assert (status, body["parent"], body["created"]) == (200, BASE, CREATED)
    answer = await client.completions.create(model="acme/taught", prompt="Ahoy?")
    assert answer.choices[0].text == "Hello there."
    assert not engine.seen[-1].HasField("whence"), "it may have a newer one by now"


async def test_it_is_healthy_once_the_map_was_read(scene: Scene, engine: ScriptedEngine) -> None:
    assert await get(scene, "/health") == (200, {"ready": True})


async def test_unknown_paths_are_answered_in_the_same_format(scene: Scene, engine: ScriptedEngine) -> None:
    status, answer = await get(scene, "/v1/embeddings")
    assert (status, answer["error"]["type"]) == (404, "invalid_request_error")
    assert (await get(scene, TEXT))[0] == 405
    assert (await post(scene, TEXT, b" " * (5 << 20)))[0] == 413
    assert (await post(scene, TEXT, b"{}", Content_Type="text/plain"))[0] == 400
    for name in ("ä", "a" * 129):
        assert (await post(scene, TEXT, {"model": BASE, "prompt": ""}, X_Request_Id=name))[0] == 400
    status, answer, _ = await post(scene, TEXT, b"no gzip", Content_Encoding="gzip")
    assert (status, answer["error"]["code"]) == (400, "InvalidRequest")
    assert "body: is not encoded as its headers say" in answer["error"]["message"]


async def test_a_request_that_does_not_come_whole_is_given_up(
    scene: Scene, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "BODY_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", scene.gateway.http_port)
    head = f"POST {TEXT} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{{"
    writer.write(head.encode())
    assert b" 400 " in await asyncio.wait_for(reader.readline(), 60)
    writer.close()


async def test_requests_in_flight_are_finished_when_the_gateway_ends(scene: Scene, engine: ScriptedEngine) -> None:
    engine.hold_before = asyncio.Event()
    async with AsyncExitStack() as stack:
        leaving = Scene(scene.redis, stack)
        await leaving.open(PATIENT)
        await asyncio.wait_for(leaving.gateway.mirror.first_read.wait(), 60)
        asking = asyncio.create_task(post(leaving, TEXT, {"model": BASE, "prompt": "Ahoy"}))
        await asyncio.wait_for(engine.started.wait(), 60)
        ending = asyncio.create_task(stack.aclose())

        async def refused() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", leaving.gateway.http_port)
            except ConnectionRefusedError:
                return True
            writer.close()
            return False

        await until(refused)
        engine.hold_before.set()
        status, answer, _ = await asking
        await ending
    assert (status, answer["choices"][0]["text"]) == (200, "Hello there.")
