"""Long requests and complete answers: they do not delay others, and cannot use up a gateway's memory."""

import asyncio
import gc
import socket
import threading
from contextlib import closing
from typing import Any

import openai
import pytest

from mint_contracts.byte_budget import OWN_BYTES, ByteBudget
from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_contracts.sampling_pb2 import GenerateEvent, GenerateRequest, Started, TokenIds
from mint_gateway import answering
from mint_gateway.http import buffered_answer, door, offload, openai_request, openai_response
from mint_gateway.http.tools import Function
from mint_gateway.security.keys import sharer
from tests.gateway.http_requests import CHAT, TEXT, get, post
from tests.gateway.scene import BASE, LIMIT_S, STORE, Scene
from tests.gateway.scripted import ScriptedEngine
from tests.waiting import until


@pytest.fixture
async def engine(scene: Scene) -> ScriptedEngine:
    return await scene.with_engine()


async def test_others_are_answered_while_a_long_answer_is_put_together(
    scene: Scene, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.words = ("word ",) * (offload.LONG // 8)
    begun, go_on, whole = threading.Event(), threading.Event(), openai_response.whole

    def wait(*arguments: Any) -> openai_response.Json:
        begun.set()
        assert go_on.wait(LIMIT_S), "nobody was answered meanwhile"
        return whole(*arguments)

    monkeypatch.setattr(openai_response, "whole", wait)
    asking = asyncio.create_task(post(scene, TEXT, {"model": BASE, "prompt": "Ahoy", "n": 2}))
    assert await asyncio.to_thread(begun.wait, LIMIT_S)
    assert (await get(scene, "/live"))[0] == 200
    go_on.set()
    status, body, _ = await asking
    assert (status, [choice["text"][:10] for choice in body["choices"]]) == (200, ["word word ", "1word 1wor"])


async def test_one_keys_long_requests_do_not_hold_up_anothers() -> None:
    """They did for seconds: each of 4 MB takes most of a second to read, and eight may arrive at a time."""
    offloading, done, go_on = offload.Offload(), list[str](), threading.Event()

    async def work(key: str) -> None:
        def do() -> None:
            assert go_on.wait(LIMIT_S)
            done.append(key)

        sharer.set(key)  # for this task
        await offloading.do(offload.LONG, do)

    many = [asyncio.create_task(work("many")) for _ in range(4)]
    await asyncio.sleep(0)  # they are in line
    other = asyncio.create_task(work("other"))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*many, other)
    assert done == ["many", "other", "many", "many", "many"]


@pytest.mark.parametrize("path", [TEXT, CHAT])
async def test_others_are_answered_while_a_long_request_is_read(
    scene: Scene, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    begun, go_on, read = threading.Event(), threading.Event(), openai_request.read

    def wait(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(LIMIT_S), "nobody was answered meanwhile"
        return read(*arguments)

    monkeypatch.setattr(openai_request, "read", wait)
    long = "Ahoy" * offload.LONG
    fields = {"prompt": long} if path == TEXT else {"messages": [{"role": "user", "content": long}]}
    asking = asyncio.create_task(post(scene, path, {"model": BASE} | fields))
    assert await asyncio.to_thread(begun.wait, LIMIT_S)
    assert (await get(scene, "/live"))[0] == 200
    go_on.set()
    assert (await asking)[0] == 200
    assert (engine.seen[0].text or engine.seen[0].chat.messages[0].content) == long


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("path", [TEXT, CHAT])
async def test_of_a_request_in_flight_only_what_engines_get_is_kept(
    scene: Scene, engine: ScriptedEngine, path: str, streamed: bool
) -> None:
    """An agent's 60 functions took 400 kB of each chat, and 2,000 chats may be in flight."""
    engine.hold_after = 1
    fields: dict[str, Any] = {"prompt": [7, 8, 9]}
    if path == CHAT:
        schema = {"type": "object", "properties": {"kept": {"type": "string"}}}
        tools = [{"type": "function", "function": {"name": "look", "parameters": schema}}]
        fields = {"messages": [{"role": "user", "content": "Ahoy"}], "tools": tools}
    asking = asyncio.create_task(post(scene, path, {"model": BASE, "stream": streamed} | fields))
    await asyncio.wait_for(engine.started.wait(), LIMIT_S)
    gc.collect()
    every = gc.get_objects()
    assert not [each for each in every if isinstance(each, openai_request.OpenAIRequest)]
    assert not [each for each in every if isinstance(each, Function) and each.parameters]
    asking.cancel()
    await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S)


async def test_an_answer_too_long_to_send_is_refused_and_its_work_ends(
    scene: Scene, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffered_answer, "MOST_BYTES", 2 << 20)
    engine.words, engine.hold_after = ("word " * 100_000,) * 40, 39
    status, body, _ = await post(scene, TEXT, {"model": BASE, "prompt": "Ahoy"})
    assert status == 422
    assert "is larger than 2 MiB, the most that is sent without a stream; ask for one" in body["error"]["message"]
    await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S)
    engine.hold_after = None
    async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key="none", max_retries=0) as client:
        pieces = [piece async for piece in await client.completions.create(model=BASE, prompt="Ahoy", stream=True)]
    assert sum(len(piece.choices[0].text) for piece in pieces) == 40 * 500_000


async def test_an_echoed_prompt_counts_with_each_completion() -> None:
    """It comes before each, and in Python takes ten times as much: a gigabyte in all, when it was counted once."""
    echoed = GenerateEvent(started=Started(prompt=[bytes(buffered_answer.MOST_BYTES // 10)]))
    budget = ByteBudget(door.MOST_KEPT, "gateway", "is full")
    with budget.share() as share:
        await buffered_answer.BufferedAnswer(share, 9).take(0, echoed)
        with pytest.raises(CapacityExceeded, match="the most that is sent without a stream; ask for one"):
            await buffered_answer.BufferedAnswer(share, 16).take(0, echoed)


async def test_answers_are_told_whole_while_all_together_have_room(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_KEPT", 1 << 20)
    engine = await scene.with_engine()
    engine.words, engine.hold_after = ("word " * 100_000,) * 4, 3
    status, body, headers = await post(scene, TEXT, {"model": BASE, "prompt": "Ahoy"})
    assert (status, body["error"]["code"], headers["Retry-After"]) == (429, "Overloaded", "1")
    assert "keeps 1 MiB of complete answers that clients have not read; retry, or stream" in body["error"]["message"]
    await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S)
    engine.words, engine.hold_after = ("word " * 100_000,), None
    for _ in range(4):
        status, body, _ = await post(scene, TEXT, {"model": BASE, "prompt": "Ahoy"})
        assert (status, len(body["choices"][0]["text"])) == (200, 500_000), "what was told takes room no more"


async def test_so_are_lists_while_all_together_have_room(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not read its list of 10,000 models held a megabyte for a minute, on each connection."""
    monkeypatch.setattr(door, "MOST_KEPT", 32 << 10)
    await scene.with_engine(store=STORE)
    await scene.place_many([f"acme/support-{number}" for number in range(600)], ["e-0"])
    await scene.seen()
    for _ in range(4):
        assert (await get(scene, "/v1/models?limit=400"))[0] == 200, "what was told takes room no more"
    status, body = await get(scene, "/v1/models")
    assert (status, body["error"]["code"]) == (429, "Overloaded")


async def test_requests_are_taken_in_while_all_that_come_have_room(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = list[ByteBudget]()  # the first is for arriving requests

    def budget(*arguments: Any) -> ByteBudget:
        budgets.append(ByteBudget(*arguments))
        return budgets[-1]

    monkeypatch.setattr(door, "MOST_ARRIVING", 1 << 20)
    monkeypatch.setattr(door, "ByteBudget", budget)
    await scene.with_engine()
    short, long = {"model": BASE, "prompt": "Ahoy"}, {"model": BASE, "prompt": "Ahoy " * 150_000}
    with closing(socket.create_connection(("127.0.0.1", scene.gateway.http_port))) as slow:
        head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2000000\r\n\r\n"
        await asyncio.to_thread(slow.sendall, head.encode() + b" " * 900_000)
        await until(lambda: budgets[0].taken == 900_000 - OWN_BYTES)
        status, body, headers = await post(scene, TEXT, long)
        assert (status, headers.get("Retry-After")) == (429, "1")
        assert "1 MiB of requests are arriving" in body["error"]["message"]
        assert (await post(scene, TEXT, short))[0] == 200
    await until(lambda: budgets[0].taken == 0)
    assert (await post(scene, TEXT, long))[0] == 200


async def test_requests_are_in_flight_by_both_doors_while_all_together_have_room(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt's token takes more memory than it had bytes on the wire."""
    monkeypatch.setattr(answering, "MOST_BYTES", 1 << 20)
    engine = await scene.with_engine()
    engine.hold_after = 1
    long, tokens = "Ahoy " * 150_000, TokenIds(ids=[1] * 150_000)
    held = scene.stub().Generate(GenerateRequest(base_model=BASE, text=long))
    await asyncio.wait_for(engine.started.wait(), LIMIT_S)
    for refused in (GenerateRequest(base_model=BASE, text=long), GenerateRequest(base_model=BASE, tokens=tokens)):
        with pytest.raises(Overloaded, match="1 MiB of requests in flight; retry later") as error:
            await scene.client.answer(refused)
        assert error.value.retry_after_s == 1.0
    status, body, headers = await post(scene, TEXT, {"model": BASE, "prompt": long})
    assert (status, body["error"]["code"], headers["Retry-After"]) == (429, "Overloaded", "1")
    held.cancel()
    await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S)
    engine.hold_after = None

    async def answered_again() -> bool:
        return (await post(scene, TEXT, {"model": BASE, "prompt": long}))[0] == 200

    await until(answered_again)
    assert len(engine.seen) == 2, "no engine was asked what was refused"


def test_parts_of_a_room_share_what_they_take_beyond_what_each_has() -> None:
    budget = ByteBudget(1 << 20, "gateway", "is full")
    with budget.share() as first:
        first.fill(600_000)
        with budget.share() as second:
            second.fill(OWN_BYTES)
            with pytest.raises(Overloaded, match="is full; retry later"):
                second.fill(600_000)
        first.fill(200_000)
        with budget.share() as third:
            third.fill(600_000)
            first.fill(0)
    assert budget.taken == 0
