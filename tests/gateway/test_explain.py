"""Explain's answers over the wire about which engine would answer, and why."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from mint_contracts import errors
from mint_contracts.records import Failure, Tier
from mint_gateway.client import question
from mint_gateway.explain import explain_all
from mint_gateway.placement_pages import PAGE
from tests.gateway.scene import BASE, PIRATE, STORE, Scene
from tests.redis_process import RedisProcess
from tests.waiting import until


async def test_the_chosen_engine_is_the_one_that_then_answers(scene: Scene) -> None:
    await scene.base()
    engines = [await scene.engine(f"e-{n}") for n in range(2)]
    await scene.place("demo/pirate", "e-0", "e-1")
    await engines[1].hold("demo/pirate", PIRATE, Tier.HOST)
    await scene.begin(*engines)
    why = await scene.client.explain("demo/pirate")
    assert (why.base_model, why.adapter, list(why.waves)) == (BASE, "demo/pirate", ["demo/wave"])
    assert (why.chosen_engine, why.chosen_because) == ("e-1", "holds it in Host")
    assert why.source_uri == PIRATE
    assert why.map_version == scene.versions[BASE]
    planned, holding = why.holders
    assert (planned.engine, planned.wanted, planned.wanted_because, planned.residency) == (
        "e-0",
        "Device",
        "spread",
        "",
    )
    assert (holding.engine, holding.residency, holding.available) == ("e-1", "Host", True)
    assert holding.revision == "sha256:e-1-demo/pirate"
    assert holding.address == engines[1].address
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/pirate"))).engine == "e-1"


async def test_an_adapter_without_an_entry_has_a_home(scene: Scene) -> None:
    await scene.base(store=STORE)
    engines = [await scene.engine(f"e-{n}") for n in range(3)]
    await scene.begin(*engines)
    why = await scene.client.explain("demo/cold")
    assert why.chosen_because == "home engine by rendezvous hashing"
    assert list(why.waves) == []
    assert (await scene.client.answer(question("Ahoy?", adapter="demo/cold"))).engine == why.chosen_engine


async def test_a_dead_engine_reports_nothing_and_nobody_is_chosen(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    await engine.hold("demo/pirate", PIRATE, Tier.DEVICE)
    await scene.begin(engine)
    await engine.leave()
    await until(lambda: not scene.gateway.mirror.views[BASE].engines["e-0"].alive)
    why = await scene.client.explain("demo/pirate")
    assert why.chosen_engine == ""
    assert "e-0 is silent" in why.chosen_because
    assert (why.holders[0].available, why.holders[0].residency) == (False, "")


async def test_a_failure_is_the_reason_that_nobody_is_chosen(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    await engine.hold("demo/pirate", PIRATE, Tier.REMOTE, Failure("UnsafeFormat", "only safetensors", terminal=True))
    await scene.begin(engine)
    why = await scene.client.explain("demo/pirate")
    assert why.chosen_engine == ""
    assert "only safetensors" in why.chosen_because
    assert why.holders[0].failure == "UnsafeFormat: only safetensors"


async def test_a_base_that_cannot_be_loaded_is_told_to_those_who_ask(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    engine.ready, engine.failure = False, Failure("SourceNotFound", "no such folder", terminal=True)
    await engine.report()
    await scene.begin(engine)
    why = await scene.client.explain("")
    assert "e-0 could not load the base (SourceNotFound: no such folder)" in why.chosen_because
    with pytest.raises(errors.EngineUnavailable, match="SourceNotFound: no such folder"):
        await scene.client.answer(question("Ahoy?"))


async def test_unknown_adapters_and_bases_are_not_found(scene: Scene) -> None:
    await scene.base()
    await scene.begin()
    with pytest.raises(errors.AdapterNotFound):
        await scene.client.explain("demo/nobody")
    with pytest.raises(errors.BaseModelNotFound):
        await scene.client.placements("demo/nobody")


async def test_placements_lists_what_is_placed_and_what_was_loaded_on_demand(scene: Scene) -> None:
    await scene.base(store=STORE)
    await scene.base("demo/other")
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    await scene.place("demo/json", "o-0", base="demo/other")
    await engine.hold("demo/cold", f"{STORE}/demo/cold", Tier.DISK)
    await scene.begin(engine)
    everything = await scene.client.placements()
    assert [(each.base_model, each.adapter) for each in everything] == [
        ("demo/other", "demo/json"),
        (BASE, "demo/cold"),
        (BASE, "demo/pirate"),
    ]
    assert [each.adapter for each in await scene.client.placements(BASE)] == ["demo/cold", "demo/pirate"]


async def test_placements_come_in_pages_that_hold_each_once_whatever_changes_meanwhile(scene: Scene) -> None:
    names = [f"demo/{n:04d}" for n in range(PAGE + 5)]
    await scene.base("demo/other")
    await scene.base(store=STORE)
    await scene.place("demo/json", "o-0", base="demo/other")
    engine = await scene.engine("e-0")
    await scene.place_many(names[:-1], ["e-0"])
    await engine.hold(names[-1], f"{STORE}/{names[-1]}", Tier.DISK)
    await scene.begin(engine)
    first = await scene.client.placements_page()  # as from clients that do not know of pages
    assert [each.adapter for each in first.placements] == ["demo/json", *names[: PAGE - 1]]
    await scene.unplace(names[PAGE - 2])  # the last one on the first page
    await scene.seen(engine)
    rest = await scene.client.placements_page(token=first.next_page_token)
    assert [each.adapter for each in rest.placements] == names[PAGE - 1 :]
    assert not rest.next_page_token
    everything = [each.adapter for each in await scene.client.placements()]
    assert everything == ["demo/json", *(name for name in names if name != names[PAGE - 2])]

    other = await scene.client.placements_page("demo/other", size=1)
    assert [each.adapter for each in other.placements] == ["demo/json"]
    assert not other.next_page_token
    assert len((await scene.client.placements_page(size=1_000_000)).placements) == len(everything)


async def test_an_invalid_page_token_or_size_is_refused(scene: Scene) -> None:
    await scene.base(store=STORE)
    await scene.place_many(["demo/1", "demo/2", "demo/3"], ["e-0"])
    await scene.begin()
    token = (await scene.client.placements_page(size=1)).next_page_token
    wrong = [("", "x"), ("", "ü"), ("", token[:-4]), ("", "WyJhIl0="), ("", "/w=="), (BASE, token)]
    for base, other in wrong:
        with pytest.raises(errors.InvalidRequest, match="page_token: is not the next_page_token of this list"):
            await scene.client.placements_page(base, size=1, token=other)
    with pytest.raises(errors.InvalidRequest, match="page_size: is -1"):
        await scene.client.placements_page(size=-1)


async def test_a_long_list_keeps_nobody_waiting(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a time slice ends with every placement, others get a turn after each."""
    count, turns = 300, ""

    async def explaining(*arguments: Any) -> AsyncIterator[Any]:
        nonlocal turns
        async for each in explain_all(*arguments):
            turns += "p"
            yield each

    monkeypatch.setattr("mint_gateway.time_slices.SLICE_S", -1.0)
    monkeypatch.setattr("mint_gateway.servicers.explain_all", explaining)
    await scene.base(store=STORE)
    await scene.place_many([f"demo/{n}" for n in range(count)], ["e-0", "e-1"])
    await scene.begin()
    listing = asyncio.create_task(scene.client.placements())
    while not listing.done():
        await asyncio.sleep(0)
        turns += "o"
    assert len(listing.result()) == turns.count("p") == count
    assert "pp" not in turns


async def test_a_full_page_ends_the_walk_over_the_rest_itself(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that is only dropped is closed by another task, at some later time."""
    opened, closed = list[Any](), list[Any]()

    async def explaining(*arguments: Any) -> AsyncIterator[Any]:
        opened.append(asyncio.current_task())
        try:
            async for each in explain_all(*arguments):
                yield each
        finally:
            closed.append(asyncio.current_task())

    monkeypatch.setattr("mint_gateway.servicers.explain_all", explaining)
    await scene.base(store=STORE)
    await scene.place_many(["demo/1", "demo/2", "demo/3"], ["e-0"])
    await scene.begin()
    assert (await scene.client.placements_page(size=1)).next_page_token
    assert closed == opened


async def test_before_the_first_map_the_gateway_says_so(fragile: Scene, own_redis: RedisProcess) -> None:
    own_redis.kill()
    await fragile.open()
    with pytest.raises(errors.MapUnavailable) as caught:
        await fragile.client.explain("demo/pirate")
    assert caught.value.grpc_status is grpc.StatusCode.UNAVAILABLE
