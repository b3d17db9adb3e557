"""An engine is lost after the first token of an answer: another one goes on with it, and the client sees nothing."""

import asyncio
import tracemalloc
from typing import Any

import grpc
import openai
import pytest
from msgspec.structs import replace

from mint_contracts import errors
from mint_contracts.byte_budget import ByteBudget
from mint_contracts.records import Tier
from mint_contracts.sampling_pb2 import Begun as BegunMessage
from mint_contracts.sampling_pb2 import (
    BegunCompletion,
    Chunk,
    GenerateEvent,
    GenerateRequest,
    SamplingParams,
    Started,
)
from mint_contracts.wire import to_status
from mint_gateway.begun import Begun
from mint_gateway.client import question
from mint_gateway.retries import Patience
from mint_gateway.server import Limits
from tests.gateway.scene import LIMITS, PATIENT, PIRATE, STORE, Scene
from tests.gateway.scripted import ScriptedEngine
from tests.waiting import until

PIRATES = "demo/pirate"
DRAINS = errors.Draining("engine", "ended before the request did")
BREAKS = errors.EngineUnavailable("engine", "cannot compute any more; see its log")


class Mortal(ScriptedEngine):
    """Dies where others would hang, or says why it ends."""

    says: errors.MintError | None = None

    async def hang(self, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        if self.says:
            await context.abort_with_status(to_status(self.says))
        self.dying = asyncio.create_task(self.deafen())
        await super().hang(context)


async def engines_of(scene: Scene, count: int = 2, limits: Limits = PATIENT) -> list[Mortal]:
    """Open a gateway before engines over one base. The first holds demo/pirate, and is lost after one word."""
    await scene.base(store=STORE)
    engines = []
    for number in range(count):
        engine = await scene.engine(f"e-{number}", kind=Mortal)
        assert isinstance(engine, Mortal)
        engine.base_source = "one and the same"
        engines.append(engine)
    await engines[0].hold(PIRATES, PIRATE, Tier.DEVICE)
    engines[0].hold_after = 1
    await scene.begin(*engines, limits=limits)
    return engines


async def events_of(scene: Scene, **sampling: Any) -> list[GenerateEvent]:
    request = question("Ahoy?", adapter=PIRATES, **sampling)
    return [event async for event in scene.client.ask(request)]


def words(events: list[GenerateEvent], index: int = 0) -> list[str]:
    return [event.chunk.text for event in events if event.HasField("chunk") and event.chunk.index == index]


@pytest.mark.parametrize("says", [None, DRAINS, BREAKS])
async def test_another_goes_on_where_it_was_lost(scene: Scene, says: errors.MintError | None) -> None:
    lost, other = await engines_of(scene)
    lost.says = says
    events = await events_of(scene)
    assert words(events) == ["Hello", " there", "."]
    assert [event.started.engine for event in events if event.HasField("started")] == ["e-0"]
    [asked] = other.seen
    assert asked.begun == BegunMessage(
        revision=lost.held[PIRATES].revision,
        base_source=lost.base_source,
        completions=[BegunCompletion(token_ids=[0])],
    )
    assert (asked.text, asked.request_id) == (lost.seen[0].text, lost.seen[0].request_id)


async def test_completions_that_are_finished_are_not_generated_again(scene: Scene) -> None:
    lost, other = await engines_of(scene)
    lost.hold_after = 4  # in the second of two
    events = await events_of(scene, n=2)
    assert [words(events, index) for index in (0, 1)] == [["Hello", " there", "."], ["1Hello", "1 there", "1."]]
    assert sum(event.HasField("finished") for event in events) == 2
    assert [list(each.token_ids) for each in other.seen[0].begun.completions] == [[0, 1, 2], [3]]
    assert [each.finished for each in other.seen[0].begun.completions] == [True, False]


async def test_each_of_several_goes_on_in_turn(scene: Scene) -> None:
    first, second, third = await engines_of(scene, 3)
    await second.hold(PIRATES, PIRATE, Tier.HOST)
    first.says = second.says = DRAINS  # or the request might be what kills them
    second.hold_after = 2
    await scene.seen(second)
    assert words(await events_of(scene)) == ["Hello", " there", "."]
    assert [len(each.seen) for each in (first, second, third)] == [1, 1, 1]
    assert list(third.seen[0].begun.completions[0].token_ids) == [0, 1]


async def test_it_waits_for_engines_that_are_full(scene: Scene) -> None:
    _, other = await engines_of(scene)
    other.refuse = errors.Overloaded("engine e-1", "queue is full", retry_after_s=1.0)
    asking = asyncio.create_task(events_of(scene))
    await until(lambda: len(other.seen) >= 2)
    other.refuse = None
    assert words(await asking) == ["Hello", " there", "."]


@pytest.mark.parametrize("reason", ["of an earlier version", "another base or revision"])
async def test_where_none_can_go_on_the_client_is_told_to_retry(scene: Scene, reason: str) -> None:
    _, other = await engines_of(scene, limits=LIMITS)
    if reason == "of an earlier version":
        other.base_source = ""
    else:
        other.refuse = errors.EngineUnavailable("base model", "was loaded from elsewhere")
    got: list[GenerateEvent] = []

    async def listen() -> None:
        async for event in scene.client.ask(question("Ahoy?", adapter=PIRATES)):
            got.append(event)

    with pytest.raises(errors.EngineUnavailable, match="engine 'e-0': ended while it was answering; retry"):
        await listen()
    assert words(got) == ["Hello"]
    assert other.seen


@pytest.mark.parametrize(("says", "most_words"), [(None, 2), (None, 6), (BREAKS, 0), (BREAKS, 6)])
async def test_a_request_that_kills_each_engine_while_they_answer_is_refused_for_good(
    scene: Scene, says: errors.MintError | None, most_words: int
) -> None:
    engines = await engines_of(scene, 6)
    for number, engine in enumerate(engines):
        engine.words, engine.hold_after, engine.says = "abcdefgh", min(number + 1, most_words), says
        await engine.hold(PIRATES, PIRATE, (Tier.DEVICE, Tier.HOST, Tier.DISK)[min(number, 2)])
    await scene.seen(*engines)
    with pytest.raises(errors.Internal, match="it may be the cause and is not retried"):
        await events_of(scene)
    assert sum(bool(each.seen) for each in engines) == Patience().deaths


async def test_a_broken_engine_counts_once_however_often_it_says_so(scene: Scene) -> None:
    """It may be the only engine, and another request may have broken it."""
    tries = 2 * Patience().deaths
    [only] = await engines_of(scene, 1, replace(PATIENT, patience=Patience(tries=tries)))
    only.hold_after, only.says = 0, BREAKS
    with pytest.raises(errors.EngineUnavailable):
        await events_of(scene)
    assert len(only.seen) == tries


async def test_a_client_of_the_gateway_cannot_say_what_was_begun(scene: Scene) -> None:
    lost, _ = await engines_of(scene)
    lost.hold_after = None
    request = question("Ahoy?", adapter=PIRATES)
    request.begun.completions.add(token_ids=[0, 1])
    assert (await scene.client.answer(request)).text == "Hello there."
    assert not lost.seen[0].HasField("begun")


async def test_streams_over_http_go_on_as_well(scene: Scene) -> None:
    lost, _ = await engines_of(scene)
    async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(model=PIRATES, prompt="Ahoy", stream=True)
        assert "".join([piece.choices[0].text async for piece in stream]) == "Hello there."
    assert lost.seen


async def test_a_prompt_is_still_echoed_over_http(scene: Scene) -> None:
    lost, other = await engines_of(scene)
    async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.completions.create(model=PIRATES, prompt="Ahoy. ", echo=True)
    assert answer.choices[0].text == "Ahoy. Hello there."
    assert lost.seen
    assert other.seen


async def test_routes_which_come_in_parts_do_not(scene: Scene) -> None:
    _, other = await engines_of(scene)
    with pytest.raises(errors.EngineUnavailable, match="retry the request"):
        await events_of(scene, routes=True)
    assert not other.seen


def test_an_answer_for_whose_tokens_there_is_no_memory_cannot_go_on() -> None:
    budget = ByteBudget(3_000, "gateway", "is full")
    with budget.share(own=0) as share, budget.share(own=0) as another:
        share.fill(1_000)
        begun = Begun(GenerateRequest(sampling=SamplingParams(n=2)), share, 1_000)
        begun.note(GenerateEvent(started=Started(base_source="one and the same")))
        found = []
        for taken_by_others in (0, 0, 900):
            another.fill(taken_by_others)
            begun.note(GenerateEvent(chunk=Chunk(token_ids=range(100), index=1)))
            found.append((begun.may_go_on, budget.taken))
        assert found == [(True, 1_500), (True, 2_000), (False, 1_900)], "the tokens that it had are given back"


def test_a_number_of_completions_that_no_engine_has_checked_takes_no_memory() -> None:
    """A gateway must outlive it: an engine refuses it, with the most that it makes."""
    request = GenerateRequest(sampling=SamplingParams(n=100_000))
    with ByteBudget(0, "gateway", "is full").share() as share:
        tracemalloc.start()
        try:
            Begun(request, share, 0)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()
