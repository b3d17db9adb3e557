"""Requests go on to the next engine before their first token; after it see `test_lost_engines`."""

import asyncio
from typing import Any

import pytest

from mint_contracts import errors
from mint_contracts.records import Tier
from mint_contracts.sampling_pb2 import GenerateRequest
from mint_gateway.client import Client, question
from tests.gateway.scene import BASE, LIMIT_S, PATIENT, PIRATE, STORE, Scene
from tests.gateway.scripted import ScriptedEngine
from tests.waiting import until


async def test_a_refusal_before_the_first_token_goes_to_the_next_engine(scene: Scene) -> None:
    await scene.base(store=STORE)
    full, draining, free = [await scene.engine(f"e-{n}") for n in range(3)]
    full.refuse = errors.Overloaded("engine e-0", "queue is full", retry_after_s=1.0)
    draining.refuse = errors.Draining("engine e-1", "ends")
    await full.hold("demo/pirate", PIRATE, Tier.DEVICE)
    await draining.hold("demo/pirate", PIRATE, Tier.HOST)
    await scene.begin(full, draining, free)
    answer = await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))
    assert answer.engine == "e-2"
    assert len(full.seen) == len(draining.seen) == 1
    retried = scene.gateway.metrics.registry.get_sample_value
    assert retried("mint_gateway_retries_total", {"reason": "Overloaded"}) == 1.0
    assert retried("mint_gateway_retries_total", {"reason": "Draining"}) == 1.0


async def test_a_request_that_is_too_large_for_an_engine_goes_to_no_other(scene: Scene) -> None:
    await scene.base()
    engines = [await scene.engine(f"e-{n}") for n in range(2)]  # with gRPC's own limit, 4 MiB
    await scene.begin(*engines)
    with pytest.raises(errors.InvalidRequest, match=r"larger than max \(\d+ vs\. 4194304\)"):
        await scene.client.answer(question("a" * (5 << 20), raw=True))
    retried = scene.gateway.metrics.registry.get_sample_value
    assert retried("mint_gateway_retries_total", {"reason": "InvalidRequest"}) is None


async def test_an_engine_that_dies_before_its_first_token_is_replaced_unseen(scene: Scene) -> None:
    dying, _ = await scene.with_holder()
    dying.hold_before = asyncio.Event()
    asking = asyncio.create_task(scene.client.answer(question("Ahoy?", adapter="demo/pirate")))
    await asyncio.wait_for(dying.started.wait(), LIMIT_S)
    await dying.deafen()
    assert (await asyncio.wait_for(asking, LIMIT_S)).engine == "e-1"
    # Its heartbeat still counts, but its connection fails: the next request does not even try it.
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-1"


async def test_an_engine_of_an_earlier_version_that_dies_after_its_first_token_ends_the_stream(scene: Scene) -> None:
    dying, other = await scene.with_holder()
    dying.hold_after = 1
    words = []

    async def listen() -> None:
        async for event in scene.client.ask(question("Ahoy?", adapter="demo/pirate")):
            if event.HasField("chunk"):
                words.append(event.chunk.text)
                await dying.deafen()

    with pytest.raises(errors.EngineUnavailable, match="retry the request") as caught:
        await listen()
    assert words == ["Hello"]
    assert caught.value.retry_after_s is not None
    assert not other.seen


async def test_an_engine_of_an_earlier_version_that_dies_between_two_completions_ends_the_stream(
    scene: Scene,
) -> None:
    """One Finished of two is not the end."""
    dying, other = await scene.with_holder()
    dying.hold_after = len(dying.words)
    kinds = []

    async def listen() -> None:
        async for event in scene.client.ask(question("Ahoy?", adapter="demo/pirate", n=2)):
            kinds.append(event.WhichOneof("event"))
            if event.HasField("finished"):
                await dying.deafen()

    with pytest.raises(errors.EngineUnavailable, match="retry the request"):
        await listen()
    assert kinds.count("finished") == 1
    assert not other.seen


class Abrupt(ScriptedEngine):
    """Ends its streams without an error after their first completion."""

    async def _complete(self, context: Any, index: int, request: GenerateRequest) -> None:
        if index == 0:
            await super()._complete(context, index, request)


async def test_a_client_of_an_engine_does_not_take_a_stream_for_complete_that_is_not(scene: Scene) -> None:
    engine = await scene.engine("e-0", kind=Abrupt)
    async with Client(engine.address, patience_s=0.0) as client:
        assert (await client.answer(question("Ahoy?"))).text == "Hello there."
        with pytest.raises(errors.EngineUnavailable, match="ended the answer too early; retry"):
            await client.completions(question("Ahoy?", n=2))


class Mute(ScriptedEngine):
    """Ends its first stream without an event or an error."""

    async def Generate(self, request: GenerateRequest, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        if self.seen:
            await super().Generate(request, context)
        else:
            self.seen.append(request)


async def test_a_stream_that_ends_before_its_first_event_is_retried(scene: Scene) -> None:
    engine = await scene.engine("e-0", kind=Mute)
    async with Client(engine.address, patience_s=0.0) as client:
        with pytest.raises(errors.EngineUnavailable, match="ended the answer too early; retry"):
            await client.answer(question("Ahoy?"))
    engine.seen.clear()
    async with Client(engine.address, patience_s=LIMIT_S) as client:
        assert (await client.answer(question("Ahoy?"))).text == "Hello there."
    assert len(engine.seen) == 2


async def test_a_stream_that_breaks_off_after_its_first_event_is_not_retried(scene: Scene) -> None:
    engine = await scene.engine("e-0", kind=Abrupt)
    async with Client(engine.address, patience_s=LIMIT_S) as client:
        with pytest.raises(errors.EngineUnavailable, match="ended the answer too early; retry"):
            await client.completions(question("Ahoy?", n=2))
    assert len(engine.seen) == 1


async def test_several_completions_move_to_the_next_engine_before_the_first_token(scene: Scene) -> None:
    full, _ = await scene.with_holder()
    full.refuse = errors.Overloaded("engine e-0", "queue is full", retry_after_s=1.0)
    answers = await scene.client.completions(question("Ahoy?", adapter="demo/pirate", n=2))
    assert [(answer.index, answer.engine) for answer in answers] == [(0, "e-1"), (1, "e-1")]


async def test_an_engines_own_error_passes_through_unchanged(scene: Scene) -> None:
    engine, other = await scene.with_holder()
    engine.refuse = errors.PromptTooLong("prompt", "has 3000 tokens; the context holds 2048")
    with pytest.raises(errors.PromptTooLong) as caught:
        await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))
    assert str(caught.value) == str(engine.refuse)
    assert not other.seen


async def test_when_all_are_overloaded_the_soonest_retry_is_told_at_once(scene: Scene) -> None:
    await scene.base(store=STORE)
    engines = [await scene.engine(f"e-{n}") for n in range(2)]
    engines[0].refuse = errors.Overloaded("engine e-0", "queue is full", retry_after_s=7.0)
    engines[1].refuse = errors.Overloaded("engine e-1", "queue is full", retry_after_s=3.0)
    await scene.begin(*engines)
    with pytest.raises(errors.Overloaded) as caught:
        await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))
    assert caught.value.retry_after_s == 3.0
    assert [len(engine.seen) for engine in engines] == [1, 1]


async def test_an_engine_that_has_yet_to_read_the_map_is_given_a_moment(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    engine.refuse = errors.AdapterNotFound("adapter 'demo/pirate'", "is in no wave")
    await scene.open(PATIENT)
    await scene.place("demo/pirate", "e-0")
    await scene.seen(engine)
    asking = asyncio.create_task(scene.client.answer(question("Ahoy?", adapter="demo/pirate")))
    await until(lambda: len(engine.seen) >= 2)
    engine.refuse = None
    assert (await asyncio.wait_for(asking, LIMIT_S)).engine == "e-0"
    # Once it has read that version of the map, its refusal counts.
    engine.refuse = errors.AdapterNotFound("adapter 'demo/pirate'", "is in no wave")
    engine.map_version = scene.versions[BASE]
    await engine.report()
    await scene.seen(engine)
    engine.seen.clear()
    with pytest.raises(errors.AdapterNotFound):
        await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))
    assert len(engine.seen) == 1


async def test_an_address_that_another_base_has_by_now_costs_a_try(scene: Scene) -> None:
    moved, _ = await scene.with_holder()
    moved.refuse = errors.BaseModelNotFound(f"base model {BASE!r}", "is not served here; demo/other is")
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-1"
    assert len(moved.seen) == 1
