"""Several prompts in one request for /v1/completions, as OpenAI answers them."""

import asyncio
import json
from functools import partial
from typing import Any

import aiohttp
import openai
import pytest

from mint_contracts import errors
from mint_contracts.records import Tier
from mint_gateway.http.openai_request import MOST_PROMPTS
from mint_gateway.server import Limits
from tests.gateway.scene import BASE, PIRATE, Scene
from tests.gateway.scripted import ScriptedEngine
from tests.waiting import until

PATH = "/v1/completions"


@pytest.fixture
async def engines(scene: Scene) -> list[ScriptedEngine]:
    """Two engines behind the gateway that hold demo/pirate and repeat each prompt."""
    await scene.base()
    engines = [await scene.engine(name) for name in ("e-0", "e-1")]
    for engine in engines:
        engine.repeats = True
        await engine.hold("demo/pirate", PIRATE, Tier.DEVICE)
    await scene.place("demo/pirate", "e-0", "e-1")
    await scene.begin(*engines)
    return engines


def asking(scene: Scene) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key="none", max_retries=0)


async def test_choices_are_told_prompt_by_prompt_each_with_its_completions(
    scene: Scene, engines: list[ScriptedEngine]
) -> None:
    async with asking(scene) as client:
        answer = await client.completions.create(
            model=BASE, prompt=["Ahoy", "Avast!"], n=2, seed=3, extra_headers={"X-Request-Id": "mine"}
        )
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "AhoyHello there."),
        (1, "1Ahoy1Hello1 there1."),
        (2, "Avast!Hello there."),
        (3, "1Avast!1Hello1 there1."),
    ]
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    assert answer.id == "cmpl-mine"
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4 + 6, 4 * 4)
    assert answer.usage.total_tokens == 10 + 16
    assert answer.usage.prompt_tokens_details
    assert answer.usage.prompt_tokens_details.cached_tokens == 2 + 3
    asked = [request for engine in engines for request in engine.seen]
    assert {(each.request_id, each.text) for each in asked} == {("mine-0", "Ahoy"), ("mine-1", "Avast!")}
    assert {each.sampling.seed for each in asked} == {3}, "each is answered as it would be alone"


async def test_an_id_as_long_as_may_be_does_for_several(scene: Scene, engines: list[ScriptedEngine]) -> None:
    async with asking(scene) as client:
        headers = {"X-Request-Id": "a" * 128}
        answer = await client.completions.create(model=BASE, prompt=["Ahoy", "Avast!"], extra_headers=headers)
    assert answer.id == f"cmpl-{'a' * 128}"
    asked = {request.request_id for engine in engines for request in engine.seen}
    assert asked == {f"{'a' * 126}-0", f"{'a' * 126}-1"}


@pytest.mark.usefixtures("engines")
async def test_prompts_of_tokens_are_several_too(scene: Scene) -> None:
    async with asking(scene) as client:
        answer = await client.completions.create(model=BASE, prompt=[[1, 2], [3]])
    assert [choice.text for choice in answer.choices] == ["[1, 2]Hello there.", "[3]Hello there."]
    assert answer.usage
    assert answer.usage.prompt_tokens == 3


async def test_the_fingerprint_is_that_of_all_prompts_or_none(scene: Scene, engines: list[ScriptedEngine]) -> None:
    async with asking(scene) as client:
        for prompt, several in ((["a"], 1), (["a", "b"], 2)):
            before = [len(engine.seen) for engine in engines]
            answer = await client.completions.create(model="demo/pirate", prompt=prompt)
            used = [engine for engine, count in zip(engines, before, strict=True) if len(engine.seen) > count]
            assert len(used) == several, "a revision is named for its engine here"
            one = f"sha256:{used[0].name}-demo/pirate" if several == 1 else None
            assert answer.system_fingerprint == one


async def test_a_stream_tells_each_prompts_words_as_they_come(scene: Scene, engines: list[ScriptedEngine]) -> None:
    slow, quick = engines
    slow.hold_before = asyncio.Event()
    async with asking(scene) as client:
        stream = await client.completions.create(
            model=BASE, prompt=["Ahoy", "Avast"], n=2, stream=True, stream_options={"include_usage": True}
        )
        texts: dict[int, str] = {}
        ends: list[int] = []
        async for piece in stream:
            for choice in piece.choices:
                texts[choice.index] = texts.get(choice.index, "") + choice.text
                if choice.finish_reason:
                    ends.append(choice.index)
            if len(ends) == 2:
                slow.hold_before.set()
            last = piece
    first = 0 if [request.text for request in quick.seen] == ["Ahoy"] else 1
    assert ends == [2 * first, 2 * first + 1, 2 - 2 * first, 3 - 2 * first]
    assert texts == {
        0: "AhoyHello there.",
        1: "1Ahoy1Hello1 there1.",
        2: "AvastHello there.",
        3: "1Avast1Hello1 there1.",
    }
    assert last.usage
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (4 + 5, 4 * 4)
    assert last.usage.prompt_tokens_details
    assert last.usage.prompt_tokens_details.cached_tokens == 2 + 2


@pytest.mark.usefixtures("engines")
async def test_each_piece_tells_usage_so_far_where_that_is_asked_for_as_of_vllm(scene: Scene) -> None:
    """Each piece has its own completion's usage, and the last one the total; without include_usage there is none."""
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    asked: dict[str, Any] = {"model": BASE, "stream": True, "stream_options": options}
    usages: dict[int, list[tuple[int, int, int]]] = {}
    async with asking(scene) as client:
        async for piece in await client.completions.create(**asked, prompt=["Ahoy", "Avast!"], n=2):
            assert piece.usage
            usage = (piece.usage.prompt_tokens, piece.usage.completion_tokens, piece.usage.total_tokens)
            usages.setdefault(piece.choices[0].index if piece.choices else -1, []).append(usage)
        chat: Any = {"messages": [{"role": "user", "content": "Ahoy"}]}
        chats = [piece async for piece in await client.chat.completions.create(**asked | chat)]
        options["include_usage"] = None
        silent = [piece async for piece in await client.chat.completions.create(**asked | chat)]
    ahoy, avast = [[(size, made, size + made) for made in (1, 2, 3, 4, 4)] for size in (4, 6)]
    assert usages == {0: ahoy, 1: ahoy, 2: avast, 3: avast, -1: [(4 + 6, 4 * 4, 10 + 16)]}
    assert [piece.usage and piece.usage.completion_tokens for piece in chats] == [0, 1, 2, 3, 4, 4, 4]
    assert [piece.usage for piece in silent] == [None] * 6


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_goes_away_ends_the_work_on_all_prompts(
    scene: Scene, engines: list[ScriptedEngine], streamed: bool
) -> None:
    for engine in engines:
        engine.hold_after = 1
    body = {"model": BASE, "prompt": ["Ahoy", "Avast"], "stream": streamed}

    async def post() -> None:
        async with aiohttp.ClientSession() as session, session.post(scene.url + PATH, json=body) as answer:
            await answer.read()

    asked = asyncio.create_task(post())
    for engine in engines:
        await asyncio.wait_for(engine.started.wait(), 60)
    asked.cancel()
    for engine in engines:
        await asyncio.wait_for(engine.cancelled.wait(), 60)
    ended = scene.gateway.metrics.registry.get_sample_value
    await until(lambda: ended("mint_gateway_requests_total", {"code": "CANCELLED", "client": ""}) == 2)


@pytest.mark.parametrize("streamed", [True, False])
async def test_one_prompt_that_is_refused_ends_the_others(
    scene: Scene, engines: list[ScriptedEngine], streamed: bool
) -> None:
    held, refusing = engines
    held.hold_before = asyncio.Event()
    refusing.refuse = errors.PromptTooLong("prompt", "has 9 tokens; the context holds 8")
    async with asking(scene) as client:
        with pytest.raises(openai.BadRequestError, match="the context holds 8"):
            await client.completions.create(model=BASE, prompt=["Ahoy", "Avast"], stream=streamed)
    ended = scene.gateway.metrics.registry.get_sample_value
    for code in ("INVALID_ARGUMENT", "CANCELLED"):
        await until(partial(ended, "mint_gateway_requests_total", {"code": code, "client": ""}))


async def test_one_prompt_that_breaks_off_ends_the_stream_by_an_error(
    scene: Scene, engines: list[ScriptedEngine]
) -> None:
    for engine in engines:
        engine.hold_after = 1
    async with asking(scene) as client:
        stream = await client.completions.create(model=BASE, prompt=["Ahoy", "Avast"], stream=True)
        pieces = stream.__aiter__()
        assert {(await anext(pieces)).choices[0].text for _ in range(2)} == {"Ahoy", "Avast"}
        await engines[0].deafen()
        with pytest.raises(openai.APIError, match="ended while it was answering"):
            await anext(pieces)
    await asyncio.wait_for(engines[1].cancelled.wait(), 60)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (["Ahoy"] * (MOST_PROMPTS + 1), f"prompt: holds {MOST_PROMPTS + 1} prompts; send {MOST_PROMPTS} at most"),
        ([1, "Ahoy"], "prompt: mixes single tokens with whole prompts"),
    ],
)
async def test_more_prompts_than_one_request_may_hold_and_lists_of_no_meaning_are_refused(
    scene: Scene, engines: list[ScriptedEngine], prompt: list[str | int], says: str
) -> None:
    asked = {"model": BASE, "prompt": prompt}
    async with aiohttp.ClientSession() as session, session.post(scene.url + PATH, json=asked) as answer:
        assert answer.status == 400
        assert says in (await answer.json())["error"]["message"]
    assert not any(engine.seen for engine in engines)


async def test_each_prompt_takes_one_of_the_gateways_places(scene: Scene) -> None:
    engine = await scene.with_engine(Limits(requests=MOST_PROMPTS, farewell_s=0.0))
    engine.repeats = True
    prompts = [f"{number:04}" for number in range(MOST_PROMPTS)]
    async with asking(scene) as client:
        answer = await client.completions.create(model=BASE, prompt=prompts)
    assert [choice.text for choice in answer.choices] == [f"{prompt}Hello there." for prompt in prompts]
    engine.hold_before = asyncio.Event()
    async with aiohttp.ClientSession() as session:
        body = {"model": BASE, "prompt": prompts}
        under_way = asyncio.create_task(session.post(scene.url + PATH, json=body))
        await until(lambda: len(engine.seen) == 2 * MOST_PROMPTS)
        async with session.post(scene.url + PATH, json={"model": BASE, "prompt": "Ahoy"}) as refused:
            assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
            assert "in flight" in json.dumps(await refused.json())
        engine.hold_before.set()
        (await under_way).close()
