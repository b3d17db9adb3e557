"""A client that knows only the gateway and an adapter's name gets answers from the right engine."""

import asyncio

import pytest

from mint_contracts import errors
from mint_contracts.records import Failure, Tier
from mint_gateway.client import question
from tests.gateway.scene import BASE, LIMIT_S, PATIENT, PIRATE, STORE, Scene
from tests.waiting import until


async def test_the_warmest_holder_answers_whoever_the_plan_named(scene: Scene) -> None:
    await scene.base()
    cool, warm = await scene.engine("e-0"), await scene.engine("e-1")
    await scene.place("demo/pirate", "e-0")
    await cool.hold("demo/pirate", PIRATE, Tier.HOST)
    await warm.hold("demo/pirate", PIRATE, Tier.DEVICE)
    await scene.begin(cool, warm)
    answer = await scene.client.answer(question("Ahoy?", adapter="demo/pirate", base_model=BASE))
    assert (answer.engine, answer.text) == ("e-1", "Hello there.")
    assert answer.revision == "sha256:e-1-demo/pirate"
    assert not cool.seen
    assert not warm.cancelled.is_set()  # its stream was read to the end


async def test_every_engine_is_told_where_a_wave_has_the_adapter(scene: Scene) -> None:
    """An engine that is not the wave's may hold it, and would only look for its name in the store."""
    await scene.base(store=STORE)
    placed, holder = await scene.engine("e-0"), await scene.engine("e-1")
    elsewhere = "s3://other/demo/pirate"
    await scene.place("demo/pirate", "e-0", source=elsewhere)
    await holder.hold("demo/pirate", elsewhere, Tier.DEVICE)
    await scene.begin(placed, holder)
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-1"
    assert holder.seen[0].whence.uri == elsewhere


async def test_another_engine_is_told_where_a_wave_has_the_adapter_by_then(scene: Scene) -> None:
    await scene.base(store=STORE)
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    engine.refuse = errors.Draining("engine e-0", "ends")
    await scene.begin(engine, limits=PATIENT)
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
    await scene.begin(engine, other)
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-0"
    await other.hold("demo/pirate", PIRATE, Tier.DEVICE)
    await scene.seen(other)
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-1"


async def test_the_base_is_found_by_the_adapter_and_passed_on_with_a_request_id(scene: Scene) -> None:
    await scene.base()
    await scene.base("demo/other")
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    await scene.begin(engine)
    answer = await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))
    assert answer.base_model == BASE
    assert engine.seen[0].base_model == BASE
    assert engine.seen[0].request_id


async def test_completions_of_one_request_are_told_apart(scene: Scene) -> None:
    engine = await scene.with_engine(store=STORE)
    answers = await scene.client.completions(question("Ahoy?", adapter="demo/pirate", n=3))
    assert [(answer.index, answer.text) for answer in answers] == [
        (0, "Hello there."),
        (1, "1Hello1 there1."),
        (2, "2Hello2 there2."),
    ]
    assert engine.seen[0].sampling.n == 3
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate", n=2))).text == "Hello there."


async def test_routes_come_through_each_completions_own_in_the_order_of_its_tokens(scene: Scene) -> None:
    await scene.with_engine(store=STORE)
    for asked in (True, False):
        answers = await scene.client.completions(question("Ahoy?", adapter="demo/pirate", n=2, routes=asked))
        routes = [[(each.first_token, each.experts) for each in answer.routes] for answer in answers]
        assert routes == ([[(0, b"\0"), (1, b"\0")], [(0, b"\1"), (1, b"\1")]] if asked else [[], []])


async def test_an_engine_whose_heart_stops_is_not_asked(scene: Scene) -> None:
    silent, _ = await scene.with_holder()
    await silent.leave()
    await until(lambda: not scene.gateway.mirror.views[BASE].engines["e-0"].alive)
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-1"
    assert not silent.seen


async def test_unknown_names_are_not_found(scene: Scene) -> None:
    engine = await scene.with_engine()
    with pytest.raises(errors.AdapterNotFound, match="demo/nobody"):
        await scene.client.answer(question("Ahoy?", adapter="demo/nobody"))
    with pytest.raises(errors.BaseModelNotFound, match="available: demo/smollm2"):
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
    await scene.begin(engine)
    with pytest.raises(errors.InvalidRequest, match="name one of demo/other, demo/smollm2"):
        await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))
    with pytest.raises(errors.InvalidRequest, match="available: demo/other, demo/smollm2"):
        await scene.client.answer(question("Ahoy?"))
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate", base_model=BASE))).engine == "e-0"


async def test_an_adapter_that_loads_nowhere_is_refused_with_its_own_error(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    await engine.hold("demo/pirate", PIRATE, Tier.REMOTE, Failure("RankTooLarge", "rank 128 above 64", terminal=True))
    await scene.begin(engine)
    with pytest.raises(errors.RankTooLarge, match="rank 128 above 64"):
        await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))
    assert not engine.seen
