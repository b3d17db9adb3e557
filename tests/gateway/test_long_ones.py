"""Requests and whole answers that are long: they hold nobody up, and a gateway's memory is not theirs alone."""

import asyncio
import threading
from typing import Any

import openai
import pytest

from mint_contracts.errors import Overloaded
from mint_contracts.sampling_pb2 import Chunk, GenerateEvent
from mint_gateway.http import answered, asked, beside, kept
from tests.gateway.scene import BASE, LIMIT_S, Scene
from tests.gateway.scripted import ScriptedEngine
from tests.gateway.test_http import CHAT, TEXT, get, post


@pytest.fixture
async def engine(scene: Scene) -> ScriptedEngine:
    return await scene.with_engine()


async def test_others_are_answered_while_a_long_one_is_put_together(
    scene: Scene, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.words = ("word ",) * (beside.LONG // 8)
    begun, go_on, whole = threading.Event(), threading.Event(), answered.whole

    def wait(*told: Any) -> answered.Json:
        begun.set()
        assert go_on.wait(LIMIT_S), "nobody was answered meanwhile"
        return whole(*told)

    monkeypatch.setattr(answered, "whole", wait)
    asking = asyncio.create_task(post(scene, TEXT, {"model": BASE, "prompt": "Ahoy", "n": 2}))
    assert await asyncio.to_thread(begun.wait, LIMIT_S)
    assert (await get(scene, "/live"))[0] == 200
    go_on.set()
    status, told, _ = await asking
    assert (status, [choice["text"][:10] for choice in told["choices"]]) == (200, ["word word ", "1word 1wor"])


@pytest.mark.parametrize("path", [TEXT, CHAT])
async def test_others_are_answered_while_a_long_request_is_read(
    scene: Scene, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    begun, go_on, read = threading.Event(), threading.Event(), asked.read

    def wait(*told: Any) -> Any:
        begun.set()
        assert go_on.wait(LIMIT_S), "nobody was answered meanwhile"
        return read(*told)

    monkeypatch.setattr(asked, "read", wait)
    long = "Ahoy" * beside.LONG
    told = {"prompt": long} if path == TEXT else {"messages": [{"role": "user", "content": long}]}
    asking = asyncio.create_task(post(scene, path, {"model": BASE} | told))
    assert await asyncio.to_thread(begun.wait, LIMIT_S)
    assert (await get(scene, "/live"))[0] == 200
    go_on.set()
    assert (await asking)[0] == 200
    assert (engine.seen[0].text or engine.seen[0].chat.messages[0].content) == long


async def test_one_that_is_too_long_to_be_told_whole_is_refused_and_ends_its_work(
    scene: Scene, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MOST_BYTES", 2 << 20)
    engine.words, engine.hold_after = ("word " * 100_000,) * 40, 39
    status, told, _ = await post(scene, TEXT, {"model": BASE, "prompt": "Ahoy"})
    assert status == 422
    assert "takes more than 2 MiB to be told whole; ask for a stream" in told["error"]["message"]
    await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S)
    engine.hold_after = None
    async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key="none", max_retries=0) as client:
        pieces = [piece async for piece in await client.completions.create(model=BASE, prompt="Ahoy", stream=True)]
    assert sum(len(piece.choices[0].text) for piece in pieces) == 40 * 500_000


async def test_answers_are_told_whole_while_all_together_have_room(
    scene: Scene, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MOST_TOGETHER", 1 << 20)
    engine.words, engine.hold_after = ("word " * 100_000,) * 4, 3
    status, told, headers = await post(scene, TEXT, {"model": BASE, "prompt": "Ahoy"})
    assert (status, told["error"]["code"], headers["Retry-After"]) == (429, "Overloaded", "1")
    assert "keeps 1 MiB of answers that are to be told whole; ask for a stream" in told["error"]["message"]
    await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S)
    engine.words, engine.hold_after = ("word " * 100_000,), None
    for _ in range(4):
        status, told, _ = await post(scene, TEXT, {"model": BASE, "prompt": "Ahoy"})
        assert (status, len(told["choices"][0]["text"])) == (200, 500_000), "what was told takes room no more"


async def test_an_answer_shares_what_it_takes_beyond_what_each_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_TOGETHER", 1 << 20)
    room, large, small = kept.Room(), piece(600_000), piece(1_000)
    with kept.Kept(room) as first:
        await first.take(0, large)
        with kept.Kept(room) as second:
            await second.take(0, small)
            with pytest.raises(Overloaded):
                await second.take(0, large)
        first.told_as(b" " * 200_000)
        with kept.Kept(room) as third:
            await third.take(0, large)
            monkeypatch.setattr(kept, "MOST_TOGETHER", 0)
            with kept.Kept(room) as fourth:
                await fourth.take(0, small)
            first.told_as(b"")
    assert room.taken == 0


def piece(characters: int) -> GenerateEvent:
    return GenerateEvent(chunk=Chunk(text="x" * characters))
