"""A client that knows only the gateway and an adapter gets answers, from the engine that should give them."""

import asyncio

import grpc
import pytest

from mint_contracts import errors
from mint_contracts.records import Failure, Tier
from mint_contracts.transport import KEEPALIVE_MS
from mint_gateway.client import Client, question
from mint_gateway.server import Limits
from mint_gateway.tries import Patience
from tests.gateway.scene import BASE, LIMITS, STORE, Scene
from tests.waiting import until

LIMIT_S = 60.0  # only a test that fails waits for it
PIRATE = f"{STORE}/demo/pirate"


async def test_the_warmest_holder_answers_whoever_the_plan_named(scene: Scene) -> None:
    await scene.base()
    cool, warm = await scene.engine("e-0"), await scene.engine("e-1")
    await scene.place("demo/pirate", "e-0")
    await cool.hold("demo/pirate", PIRATE, Tier.HOST)
    await warm.hold("demo/pirate", PIRATE, Tier.DEVICE)
    await scene.open()
    await scene.seen(cool, warm)
    answer = await scene.client.answer(question("Ahoy?", adapter="demo/pirate", base_model=BASE))
    assert (answer.engine, answer.text) == ("e-1", "Hello there.")
    assert answer.revision == "sha256:e-1-demo/pirate"
    assert not cool.seen
    assert not warm.cancelled.is_set()  # it was let finish


async def test_every_engine_is_told_where_a_wave_has_the_adapter(scene: Scene) -> None:
    """Another engine than the wave's may hold it, and would know its name from the store alone."""
    await scene.base(store=STORE)
    placed, holder = await scene.engine("e-0"), await scene.engine("e-1")
    elsewhere = "s3://other/demo/pirate"
    await scene.place("demo/pirate", "e-0", source=elsewhere)
    await holder.hold("demo/pirate", elsewhere, Tier.DEVICE)
    await scene.open()
    await scene.seen(placed, holder)
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-1"
    assert holder.seen[0].whence.uri == elsewhere


async def test_another_engine_is_told_where_a_wave_has_the_adapter_by_then(scene: Scene) -> None:
    await scene.base(store=STORE)
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    engine.refuse = errors.Draining("engine e-0", "ends")
    await scene.open(Limits(patience=Patience(tries=1000, away_s=LIMIT_S), farewell_s=0.0))
    await scene.seen(engine)
    asking = asyncio.create_task(scene.client.answer(question("Ahoy?", adapter="demo/pirate")))
    await until(lambda: engine.seen)
    await scene.place("demo/pirate", "e-0", source="s3://other/demo/pirate")
    await until(lambda: engine.seen[-1].whence.uri == "s3://other/demo/pirate")
    assert engine.seen[0].whence.uri == PIRATE
    engine.refuse = None
    assert (await asyncio.wait_for(asking, LIMIT_S)).engine == "e-0"


async def test_a_new_holder_is_chosen_as_soon_as_it_reports(scene: Scene) -> None:
    await scene.base()
    engine, other = await scene.engine("e-0"), await scene.engine("e-1")
    await scene.place("demo/pirate", "e-0")
    await scene.open()
    await scene.seen(engine, other)
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-0"
    await other.hold("demo/pirate", PIRATE, Tier.DEVICE)
    await scene.seen(other)
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-1"


async def test_the_base_is_found_by_the_adapter_and_passed_on_with_a_request_id(scene: Scene) -> None:
    await scene.base()
    await scene.base("demo/other")
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    await scene.open()
    await scene.seen(engine)
    answer = await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))
    assert answer.base_model == BASE
    assert engine.seen[0].base_model == BASE
    assert engine.seen[0].request_id


async def test_a_refusal_before_the_first_token_goes_to_the_next_engine(scene: Scene) -> None:
    await scene.base(store=STORE)
    full, draining, free = [await scene.engine(f"e-{n}") for n in range(3)]
    full.refuse = errors.Overloaded("engine e-0", "queue is full", retry_after_s=1.0)
    draining.refuse = errors.Draining("engine e-1", "ends")
    await full.hold("demo/pirate", PIRATE, Tier.DEVICE)
    await draining.hold("demo/pirate", PIRATE, Tier.HOST)
    await scene.open()
    await scene.seen(full, draining, free)
    answer = await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))
    assert answer.engine == "e-2"
    assert len(full.seen) == len(draining.seen) == 1
    retried = scene.gateway.metrics.registry.get_sample_value
    assert retried("mint_gateway_retries_total", {"reason": "Overloaded"}) == 1.0
    assert retried("mint_gateway_retries_total", {"reason": "Draining"}) == 1.0


async def test_an_engine_that_dies_before_its_first_token_is_replaced_unseen(scene: Scene) -> None:
    await scene.base(store=STORE)
    dying, other = await scene.engine("e-0"), await scene.engine("e-1")
    await dying.hold("demo/pirate", PIRATE, Tier.DEVICE)
    dying.hold_before = asyncio.Event()
    await scene.open()
    await scene.seen(dying, other)
    asking = asyncio.create_task(scene.client.answer(question("Ahoy?", adapter="demo/pirate")))
    await asyncio.wait_for(dying.started.wait(), LIMIT_S)
    await dying.deafen()
    assert (await asyncio.wait_for(asking, LIMIT_S)).engine == "e-1"
    # Its heartbeat still counts, but its connection fails: the next request does not even try it.
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-1"


async def test_an_engine_that_dies_after_its_first_token_ends_the_stream_as_unavailable(scene: Scene) -> None:
    await scene.base(store=STORE)
    dying, other = await scene.engine("e-0"), await scene.engine("e-1")
    await dying.hold("demo/pirate", PIRATE, Tier.DEVICE)
    dying.hold_after = 1
    await scene.open()
    await scene.seen(dying, other)
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


async def test_completions_of_one_request_are_told_apart(scene: Scene) -> None:
    await scene.base(store=STORE)
    engine = await scene.engine("e-0")
    await scene.open()
    await scene.seen(engine)
    answers = await scene.client.completions(question("Ahoy?", adapter="demo/pirate", n=3))
    assert [(answer.index, answer.text) for answer in answers] == [
        (0, "Hello there."),
        (1, "1Hello1 there1."),
        (2, "2Hello2 there2."),
    ]
    assert engine.seen[0].sampling.n == 3
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate", n=2))).text == "Hello there."


async def test_an_engine_that_dies_between_two_completions_ends_the_stream_as_unavailable(scene: Scene) -> None:
    """One Finished of two is not the end, and after the first token nobody else is asked."""
    await scene.base(store=STORE)
    dying, other = await scene.engine("e-0"), await scene.engine("e-1")
    await dying.hold("demo/pirate", PIRATE, Tier.DEVICE)
    dying.hold_after = len(dying.words)
    await scene.open()
    await scene.seen(dying, other)
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


async def test_several_completions_move_to_the_next_engine_before_the_first_token(scene: Scene) -> None:
    await scene.base(store=STORE)
    full, free = await scene.engine("e-0"), await scene.engine("e-1")
    full.refuse = errors.Overloaded("engine e-0", "queue is full", retry_after_s=1.0)
    await full.hold("demo/pirate", PIRATE, Tier.DEVICE)
    await scene.open()
    await scene.seen(full, free)
    answers = await scene.client.completions(question("Ahoy?", adapter="demo/pirate", n=2))
    assert [(answer.index, answer.engine) for answer in answers] == [(0, "e-1"), (1, "e-1")]


async def test_an_engine_whose_heart_stops_is_not_asked(scene: Scene) -> None:
    await scene.base(store=STORE)
    silent, other = await scene.engine("e-0"), await scene.engine("e-1")
    await silent.hold("demo/pirate", PIRATE, Tier.DEVICE)
    await scene.open()
    await scene.seen(silent, other)
    await silent.leave()
    await until(lambda: not scene.gateway.mirror.views[BASE].engines["e-0"].alive)
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-1"
    assert not silent.seen


async def test_when_every_engine_is_away_the_request_waits_a_bounded_time(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    await engine.deafen()
    await scene.open()
    await scene.seen(engine)
    began = asyncio.get_running_loop().time()
    with pytest.raises(errors.EngineUnavailable) as caught:
        await asyncio.wait_for(scene.client.answer(question("Ahoy?", adapter="demo/pirate")), LIMIT_S)
    waited = asyncio.get_running_loop().time() - began
    assert waited > LIMITS.patience.away_s * 0.9
    assert caught.value.retry_after_s == LIMITS.patience.retry_after_s
    assert "e-0 does not answer at its address" in str(caught.value)


async def test_a_request_that_waits_is_answered_when_an_engine_comes_back(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    engine.ready = False
    await engine.report()
    await scene.open(Limits(patience=Patience(away_s=8.0), farewell_s=0.0))
    await scene.seen(engine)
    asking = asyncio.create_task(scene.client.answer(question("Ahoy?", adapter="demo/pirate")))
    await until(lambda: scene.gateway.metrics.registry.get_sample_value("mint_gateway_in_flight") == 1)
    engine.ready = True
    await engine.report()
    assert (await asyncio.wait_for(asking, LIMIT_S)).engine == "e-0"


async def test_an_engines_own_error_passes_through_unchanged(scene: Scene) -> None:
    await scene.base(store=STORE)
    engine, other = await scene.engine("e-0"), await scene.engine("e-1")
    await engine.hold("demo/pirate", PIRATE, Tier.DEVICE)
    engine.refuse = errors.PromptTooLong("prompt", "has 3000 tokens; the context holds 2048")
    await scene.open()
    await scene.seen(engine, other)
    with pytest.raises(errors.PromptTooLong) as caught:
        await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))
    assert str(caught.value) == str(engine.refuse)
    assert not other.seen


async def test_when_all_are_overloaded_the_soonest_retry_is_told_at_once(scene: Scene) -> None:
    await scene.base(store=STORE)
    engines = [await scene.engine(f"e-{n}") for n in range(2)]
    engines[0].refuse = errors.Overloaded("engine e-0", "queue is full", retry_after_s=7.0)
    engines[1].refuse = errors.Overloaded("engine e-1", "queue is full", retry_after_s=3.0)
    await scene.open()
    await scene.seen(*engines)
    with pytest.raises(errors.Overloaded) as caught:
        await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))
    assert caught.value.retry_after_s == 3.0
    assert [len(engine.seen) for engine in engines] == [1, 1]


async def test_unknown_names_are_not_found(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    await scene.open()
    await scene.seen(engine)
    with pytest.raises(errors.AdapterNotFound, match="demo/nobody"):
        await scene.client.answer(question("Ahoy?", adapter="demo/nobody"))
    with pytest.raises(errors.BaseModelNotFound, match="there are demo/smollm2"):
        await scene.client.answer(question("Ahoy?", base_model="demo/nobody"))
    with pytest.raises(errors.InvalidRequest, match="not a valid name"):
        await scene.client.answer(question("Ahoy?", adapter="../../etc/passwd"))
    assert not engine.seen


async def test_an_ambiguous_request_is_refused_with_the_bases_it_may_mean(scene: Scene) -> None:
    await scene.base()
    await scene.base("demo/other")
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    await scene.place("demo/pirate", "o-0", base="demo/other")
    await scene.open()
    await scene.seen(engine)
    with pytest.raises(errors.InvalidRequest, match="name one of demo/other, demo/smollm2"):
        await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))
    with pytest.raises(errors.InvalidRequest, match="there are demo/other, demo/smollm2"):
        await scene.client.answer(question("Ahoy?"))
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate", base_model=BASE))).engine == "e-0"


async def test_an_adapter_that_loads_nowhere_is_refused_with_its_own_error(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    await engine.hold("demo/pirate", PIRATE, Tier.REMOTE, Failure("RankTooLarge", "rank 128 above 64", terminal=True))
    await scene.open()
    await scene.seen(engine)
    with pytest.raises(errors.RankTooLarge, match="rank 128 above 64"):
        await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))
    assert not engine.seen


async def test_an_engine_that_has_yet_to_read_the_map_is_given_a_moment(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    engine.refuse = errors.AdapterNotFound("adapter 'demo/pirate'", "is in no wave")
    await scene.open()
    await scene.place("demo/pirate", "e-0")
    await scene.seen(engine)
    asking = asyncio.create_task(scene.client.answer(question("Ahoy?", adapter="demo/pirate")))
    await until(lambda: len(engine.seen) >= 2)
    engine.refuse = None
    assert (await asyncio.wait_for(asking, LIMIT_S)).engine == "e-0"
    # Once it has read the map, its word counts.
    engine.refuse = errors.AdapterNotFound("adapter 'demo/pirate'", "is in no wave")
    engine.map_version = scene.versions[BASE]
    await engine.report()
    await scene.seen(engine)
    engine.seen.clear()
    with pytest.raises(errors.AdapterNotFound):
        await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))
    assert len(engine.seen) == 1


async def test_a_clients_cancellation_reaches_the_engine(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    engine.hold_after = 1
    await scene.open()
    await scene.seen(engine)
    call = scene.stub().Generate(question("Ahoy?"))
    await call.read()  # Started
    await call.read()  # the first token
    call.cancel()
    await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S)
    await until(lambda: scene.gateway.metrics.registry.get_sample_value("mint_gateway_in_flight") == 0)


async def test_a_client_that_cancels_before_the_first_token_frees_the_engine_too(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    engine.hold_before = asyncio.Event()
    await scene.open()
    await scene.seen(engine)
    call = scene.stub().Generate(question("Ahoy?"))
    await asyncio.wait_for(engine.started.wait(), LIMIT_S)
    call.cancel()
    await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S)


async def test_an_address_that_another_base_has_by_now_costs_a_try(scene: Scene) -> None:
    await scene.base(store=STORE)
    moved, other = await scene.engine("e-0"), await scene.engine("e-1")
    await moved.hold("demo/pirate", PIRATE, Tier.DEVICE)
    moved.refuse = errors.BaseModelNotFound(f"base model {BASE!r}", "is not served here; demo/other is")
    await scene.open()
    await scene.seen(moved, other)
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-1"
    assert len(moved.seen) == 1


async def test_the_clients_deadline_is_the_engines_deadline(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    engine.hold_before = asyncio.Event()
    await scene.open()
    await scene.seen(engine)
    call = scene.stub().Generate(question("Ahoy?"), timeout=90.0)
    await asyncio.wait_for(engine.started.wait(), LIMIT_S)
    [remaining_s] = engine.remaining_s
    assert remaining_s is not None
    assert 0 < remaining_s <= 90.1  # gRPC rounds a deadline up where it writes it on the wire
    call.cancel()
    await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S)


async def test_a_deadline_that_passes_ends_the_request_at_the_engine(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    engine.hold_before = asyncio.Event()
    await scene.open()
    await scene.seen(engine)
    deadline_s = 0.5
    while not engine.started.is_set():  # a busy machine may need more than that to get a request there
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await scene.stub().Generate(question("Ahoy?"), timeout=deadline_s).read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        deadline_s *= 2
    await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S)


async def test_more_requests_than_the_gateway_takes_are_refused(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    engine.hold_after = 1
    await scene.open(Limits(requests=2, farewell_s=0.0, grace_s=0.1))
    await scene.seen(engine)
    calls = [scene.stub().Generate(question("Ahoy?")) for _ in range(2)]
    await until(lambda: len(engine.seen) == 2)
    with pytest.raises(errors.Overloaded) as caught:
        await scene.client.answer(question("Ahoy?"))
    assert caught.value.retry_after_s == 1.0
    for call in calls:
        call.cancel()
    await until(lambda: scene.gateway.metrics.registry.get_sample_value("mint_gateway_in_flight") == 0)
    engine.hold_after = None
    assert (await scene.client.answer(question("Ahoy?"))).text == "Hello there."


async def test_a_client_with_patience_lives_through_an_engines_absence(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    await engine.deafen()
    await scene.open(Limits(patience=Patience(away_s=0.1, retry_after_s=0.2), farewell_s=0.0))
    await scene.seen(engine)
    async with Client(scene.target, patience_s=20.0) as client:
        asking = asyncio.create_task(client.answer(question("Ahoy?")))
        ended = scene.gateway.metrics.registry.get_sample_value
        await until(lambda: (ended("mint_gateway_requests_total", {"code": "UNAVAILABLE"}) or 0) >= 2)
        await engine.listen()
        assert (await asyncio.wait_for(asking, LIMIT_S)).text == "Hello there."


async def test_the_silence_of_a_long_load_does_not_cost_the_connection(scene: Scene) -> None:
    """A server that takes our pings for an attack ends the connection at the third (too_many_pings)."""
    await scene.base()
    engine = await scene.engine("e-0")
    engine.hold_before = asyncio.Event()
    await scene.open()
    await scene.seen(engine)
    asking = asyncio.create_task(scene.client.answer(question("Ahoy?")))
    await asyncio.wait_for(engine.started.wait(), LIMIT_S)
    # gRPC lets no channel ping more often than every 10 s, so this takes as long as it takes.
    asyncio.get_running_loop().call_later(3.3 * KEEPALIVE_MS / 1000, engine.hold_before.set)
    assert (await asking).text == "Hello there."
    assert len(engine.seen) == 1
