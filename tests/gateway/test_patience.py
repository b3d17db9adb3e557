"""How long requests wait, and how many may wait: for engines that are away, until a deadline or cancellation."""

import asyncio

import grpc
import pytest

from mint_contracts import errors
from mint_contracts.transport import KEEPALIVE_MS, SERVER_OPTIONS
from mint_gateway import channels
from mint_gateway.client import Client, question
from mint_gateway.retries import Patience
from mint_gateway.server import Limits
from tests.gateway.keepalive import sooner
from tests.gateway.scene import LIMIT_S, LIMITS, PATIENT, Scene
from tests.waiting import until


async def test_when_every_engine_is_away_the_request_waits_a_bounded_time(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    await engine.deafen()
    await scene.begin(engine)
    with pytest.raises(errors.EngineUnavailable) as caught:
        await asyncio.wait_for(scene.client.answer(question("Ahoy?", adapter="demo/pirate")), LIMIT_S)
    assert caught.value.retry_after_s == LIMITS.patience.retry_after_s
    assert "e-0 does not answer at its address" in str(caught.value)


async def test_a_request_that_waits_is_answered_when_an_engine_comes_back(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    engine.ready = False
    await engine.report()
    await scene.begin(engine, limits=PATIENT)
    asking = asyncio.create_task(scene.client.answer(question("Ahoy?", adapter="demo/pirate")))
    await until(lambda: scene.gateway.metrics.registry.get_sample_value("mint_gateway_in_flight") == 1)
    engine.ready = True
    await engine.report()
    assert (await asyncio.wait_for(asking, LIMIT_S)).engine == "e-0"


async def test_a_clients_cancellation_reaches_the_engine(scene: Scene) -> None:
    engine = await scene.with_engine()
    engine.hold_after = 1
    call = scene.stub().Generate(question("Ahoy?"))
    await call.read()  # Started
    await call.read()  # the first token
    call.cancel()
    await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S)
    await until(lambda: scene.gateway.metrics.registry.get_sample_value("mint_gateway_in_flight") == 0)


async def test_a_client_that_cancels_before_the_first_token_frees_the_engine_too(scene: Scene) -> None:
    engine = await scene.with_engine()
    engine.hold_before = asyncio.Event()
    call = scene.stub().Generate(question("Ahoy?"))
    await asyncio.wait_for(engine.started.wait(), LIMIT_S)
    call.cancel()
    await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S)


async def test_the_clients_deadline_is_the_engines_deadline(scene: Scene) -> None:
    engine = await scene.with_engine()
    engine.hold_before = asyncio.Event()
    call = scene.stub().Generate(question("Ahoy?"), timeout=90.0)
    await asyncio.wait_for(engine.started.wait(), LIMIT_S)
    [remaining_s] = engine.remaining_s
    assert remaining_s is not None
    assert 0 < remaining_s <= 90.2  # gRPC rounds a deadline up to a tenth of a second on each of two wires
    call.cancel()
    await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S)


async def test_a_deadline_that_passes_ends_the_request_at_the_engine(scene: Scene) -> None:
    engine = await scene.with_engine()
    engine.hold_before = asyncio.Event()
    deadline_s = 0.5
    while not engine.started.is_set():  # on a busy machine the request may not arrive within that
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await scene.stub().Generate(question("Ahoy?"), timeout=deadline_s).read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        deadline_s *= 2
    await asyncio.wait_for(engine.cancelled.wait(), LIMIT_S)


async def test_more_requests_than_the_gateway_takes_are_refused(scene: Scene) -> None:
    engine = await scene.with_engine(Limits(requests=2, farewell_s=0.0, grace_s=0.1))
    engine.hold_after = 1
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
    await scene.begin(engine, limits=Limits(patience=Patience(away_s=0.1, retry_after_s=0.2), farewell_s=0.0))
    async with Client(scene.target, patience_s=LIMIT_S) as client:
        asking = asyncio.create_task(client.answer(question("Ahoy?")))
        ended = scene.gateway.metrics.registry.get_sample_value
        await until(lambda: (ended("mint_gateway_requests_total", {"code": "UNAVAILABLE", "client": ""}) or 0) >= 2)
        await engine.listen()
        assert (await asyncio.wait_for(asking, LIMIT_S)).text == "Hello there."


async def test_the_silence_of_a_long_load_does_not_cost_the_connection(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes our pings for an attack would close the connection at the fourth (too_many_pings)."""
    # Both ends' intervals are shortened alike: gRPC itself sends at most one ping per second.
    monkeypatch.setattr("tests.gateway.scripted.SERVER_OPTIONS", sooner(SERVER_OPTIONS, 10))
    monkeypatch.setattr(channels, "_OPTIONS", sooner(channels._OPTIONS, 10))
    engine = await scene.with_engine()
    engine.hold_before = asyncio.Event()
    asking = asyncio.create_task(scene.client.answer(question("Ahoy?")))
    await asyncio.wait_for(engine.started.wait(), LIMIT_S)
    asyncio.get_running_loop().call_later(6 * KEEPALIVE_MS / 10_000, engine.hold_before.set)
    assert (await asking).text == "Hello there."
    assert len(engine.seen) == 1
