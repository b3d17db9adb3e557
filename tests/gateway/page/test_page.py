"""The web page's files and the JSON that it requests, from a real gateway."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
import pytest
from redis.exceptions import ResponseError

from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.catalog_reader import Page as CatalogPage
from mint_contracts.records import BaseRecord, Failure, Held, MapChange, Place, Placement, Tier, WaveRecord
from mint_contracts.source import Source
from mint_contracts.training_pb2 import PolicyState
from mint_contracts.training_records import Stage
from mint_gateway.page import overview, policies
from mint_gateway.page.files import FILES
from mint_gateway.page.names import CATALOGS_AT_ONCE
from mint_gateway.server import Limits
from tests.gateway.catalogs import declare, written
from tests.gateway.scene import BASE, LIMIT_S, STORE, Scene
from tests.gateway.training_waves import NAMES, Training, reported, wave
from tests.redis_process import RedisProcess
from tests.waiting import PATIENCE_S, until

ASKED = "/v1/mint"


async def fetched(scene: Scene, path: str, **headers: str) -> tuple[int, str, Mapping[str, str]]:
    """Return the status, the text and the headers of a GET."""
    async with aiohttp.ClientSession() as session, session.get(scene.url + path, headers=headers) as answer:
        return answer.status, await answer.text(), answer.headers


async def ask(scene: Scene, call: str) -> Any:
    """Return the JSON of an answer, or the status and message of an error."""
    status, text, _ = await fetched(scene, f"{ASKED}/{call}")
    body = msgspec.json.decode(text)
    return body if status == 200 else (status, body["error"]["message"])


@pytest.fixture
async def served(scene: Scene) -> Scene:
    """Two engines, one of which is not ready, an adapter on the other, and waves of each kind."""
    waves = (
        WaveRecord("demo/wave", "names", 2, 1, Tier.DEVICE, slots=2, priority=5, admitted=True),
        WaveRecord("demo/broken", "names", 1, 1, Tier.HOST, admitted=True),
        WaveRecord(
            "demo/later", "names", 4, 1, Tier.DEVICE, slots=4, position=1, reason="Waiting", message="needs 2"
        ),
        WaveRecord(
            "demo/past", "names", 1, 1, Tier.DEVICE, reason="Expired", message="expired at 2027-01-15T08:00:00Z"
        ),
        WaveRecord("demo/w", "train", 2, 1, Tier.DEVICE, slots=2, admitted=True),
    )
    await scene.base()
    record = BaseRecord(BASE, device_slots=8, engines_max=2)
    scene.versions[BASE] = await scene.writer.apply(BASE, MapChange(base=record, set_waves=waves))
    placed = {"demo/pirate": "demo/wave", "demo/robot": "demo/broken"}
    placements = [
        Placement(name, Source(f"{STORE}/{name}"), (of,), (Place("e-0", Tier.DEVICE, "spread"),))
        for name, of in placed.items()
    ]
    scene.versions[BASE] = await scene.writer.apply(BASE, MapChange(set_placements=tuple(placements)))
    engines = [await scene.engine(f"e-{n}") for n in range(2)]
    engines[0].running, engines[1].ready = 3, False
    await engines[0].hold("demo/pirate", f"{STORE}/demo/pirate", Tier.DEVICE)
    await engines[0].hold("demo/old", f"{STORE}/demo/old", Tier.DISK)
    await engines[0].hold("demo/robot", f"{STORE}/demo/robot", Tier.REMOTE, Failure("CorruptFile", "torn", True))
    await engines[1].report()
    await scene.begin(*engines)
    return scene


async def test_the_page_s_files_are_told_as_what_they_are_and_may_load_nothing_else(scene: Scene) -> None:
    await scene.open()
    for path, file in FILES.items():
        status, text, headers = await fetched(scene, path)
        assert (status, headers["Content-Type"]) == (200, f"{file.media_type}; charset=utf-8")
        assert headers["X-Content-Type-Options"] == "nosniff"
        policy = dict(each.split(" ", 1) for each in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert {policy[each] for each in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg", "", text), "nothing from elsewhere"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        same, nothing, _ = await fetched(scene, path, If_None_Match="")
        assert same == 200
        same, nothing, _ = await fetched(scene, path, **{"If-None-Match": headers["ETag"]})
        assert (same, nothing) == (304, "")


async def test_bases_tell_their_engines_slots_tiers_and_requests(served: Scene) -> None:
    body = await ask(served, "bases")
    [base] = body["bases"]
    assert (base["base_model"], base["states"], base["placed"]) == (BASE, {"Ready": 1, "Starting": 1}, 2)
    assert (base["slots_used"], base["slots_total"], base["running"], base["waiting"]) == (3, 16, 3, 0)
    assert base["held"] == {"device": 1, "host": 0, "disk": 1, "failed": 1}
    assert [(each["name"], each["state"], each["running"]) for each in base["engines"]] == [
        ("e-0", "Ready", 3),
        ("e-1", "Starting", 0),
    ]
    assert (body["total"]["engines"], body["total"]["ready"], body["total"]["placed"]) == (2, 1, 2)
    assert (body["next"], body["map_away"]) == ("", False)


async def test_waves_that_serve_tell_their_phase_and_how_many_copies_are_ready(served: Scene) -> None:
    body = await ask(served, "waves/serving")
    keys = ("wave", "phase", "wanted", "placed", "ready", "failed", "position")
    assert [tuple(each[key] for key in keys) for each in body["waves"]] == [
        ("demo/broken", "Failed", 1, 1, 0, 1, 0),
        ("demo/later", "Pending", 4, 0, 0, 0, 1),
        ("demo/past", "Expired", 0, 0, 0, 0, 0),
        ("demo/wave", "Placing", 2, 1, 1, 0, 0),
    ]
    assert (body["total"], body["pending"], body["incomplete"]) == (4, 2, [])
    first = await ask(served, "waves/serving?limit=1&prefix=demo/l")
    assert ([each["wave"] for each in first["waves"]], first["next"], first["total"]) == (["demo/later"], "", 4)
    first = await ask(served, "waves/serving?limit=3")
    rest = await ask(served, f"waves/serving?limit=3&after={first['next']}")
    assert ([each["wave"] for each in rest["waves"]], rest["next"]) == (["demo/wave"], "")


async def test_waves_that_train_tell_how_far_they_are(served: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "LOOK_S", 0.0)
    [waits] = (await ask(served, "waves/training"))["waves"]
    assert (waits["wave"], waits["phase"], waits["policies"], waits["reward"]) == ("demo/w", "Placing", 2, None)
    training = Training(served)
    await training.declare(wave())
    await training.report(*(reported(name, 2, reward_recent=0.5, tokens=10, step_s=2.0) for name in NAMES))

    async def begun() -> Any:
        [found] = (await ask(served, "waves/training"))["waves"]
        return found if found["step"] else None

    found = await until(begun)
    assert (found["phase"], found["step"], found["steps"], found["reward"]) == ("Training", 2, 4, 0.5)
    assert (found["tokens"], found["eta_s"], found["best"]) == (20, 4, None)


async def test_policies_of_programs_tell_where_they_are_and_who_may_have_more(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "GLANCE_S", LIMIT_S)
    await scene.base(trains=True)
    engines = [await scene.engine(f"e-{n}", trains=True) for n in range(2)]
    trainers = [engine.trainer for engine in engines if engine.trainer is not None]
    for n, names in enumerate((["acme/b", "acme/a"], ["acme/a", "law/c"])):
        for name in names:
            state = PolicyState(policy=name, base_model=BASE, engine=f"e-{n}", step=2, sequence=5)
            trainers[n].policies[name] = state
    await scene.begin(*engines)
    first = {"policy": "acme/a", "base_model": BASE, "engine": "e-0", "step": 2, "calls": 5}
    body = await ask(scene, "policies?prefix=acme/&limit=2")
    assert body["policies"] == [first, first | {"engine": "e-1"}]
    assert (body["total"], body["silent"]) == (4, [])
    last = await ask(scene, f"policies?prefix=acme/&limit=2&after={quote(body['next'])}")
    assert ([each["policy"] for each in last["policies"]], last["next"]) == (["acme/b"], "")
    trainers[1].answers.clear()
    monkeypatch.setattr(policies, "GLANCE_S", 0.2)

    async def one_is_silent() -> Any:
        body = await ask(scene, "policies")
        return body if body["silent"] == ["e-1"] else None  # on a busy machine the other may be late too

    assert [each["policy"] for each in (await until(one_is_silent))["policies"]] == ["acme/a", "acme/b"]
    trainers[1].answers.set()


async def test_a_wave_tells_why_it_stands_so_and_some_of_its_policies(served: Scene) -> None:
    why = await ask(served, "wave?name=demo/wave")
    assert (why["progress"], why["explanation"]["ready"], why["explanation"]["wanted"]) == (None, 1, 2)
    training = Training(served)
    await training.declare(wave())
    history = [float(step) for step in range(1000)]
    failed = reported(NAMES[1], 3, Stage.FAILED, failure=Failure("BadReward", "<b>no</b>", True))
    await training.report(
        reported(NAMES[0], 1000), failed, rewards={NAMES[0]: history, NAMES[1]: [0.25, float("nan"), 1.0]}
    )

    async def read() -> Any:
        found = (await ask(served, "wave?name=demo/w"))["progress"]
        return found if found and found["policies"][0]["step"] else None

    first, second = (await until(read))["policies"]
    assert (len(first["rewards"]), first["every"], first["rewards"][-1]) == (200, 5, 997.0)
    assert (second["rewards"], second["failure_message"]) == ([0.25, None, 1.0], "<b>no</b>")
    page = (await ask(served, "wave?name=demo/w&start=1&limit=1"))["progress"]
    assert ([each["policy"] for each in page["policies"]], page["policy_count"]) == ([NAMES[1]], 2)
    assert (await ask(served, "wave?name=demo/nobody"))[0] == 404
    assert (await ask(served, "wave?name=nobody"))[0] == 400
    assert (await ask(served, "wave")) == (400, "name: is missing")


async def test_an_adapter_tells_why_it_is_there_as_grpc_does(served: Scene) -> None:
    body, why = await ask(served, "adapter?name=demo/pirate"), await served.client.explain("demo/pirate")
    assert (body["chosen_engine"], body["chosen_because"]) == (why.chosen_engine, why.chosen_because)
    assert [each["residency"] for each in body["holders"]] == ["Device"]
    assert (await ask(served, "adapter?name="))["adapter"] == ""
    assert (await ask(served, "adapter?name=demo/nobody"))[0] == 404
    assert (await ask(served, "adapter?name=%3Cscript%3E"))[0] == 400


async def test_names_are_found_by_how_they_begin(served: Scene) -> None:
    assert await ask(served, "adapters?prefix=demo/p") == {"names": ["demo/pirate"]}
    assert await ask(served, "adapters?prefix=demo/&limit=1") == {"names": ["demo/pirate"]}
    assert await ask(served, "adapters?prefix=x") == {"names": []}


async def test_names_are_found_in_the_catalog_of_every_base(scene: Scene, tmp_path: Path) -> None:
    for number in range(CATALOGS_AT_ONCE + 1):
        await written(tmp_path / str(number), f"a/{number}")
        await declare(scene.redis, f"file://{tmp_path}/{number}", f"demo/base-{number}")
    await scene.open()

    async def all_found() -> bool:
        found = (await ask(scene, "adapters?prefix=a/"))["names"]
        return bool(found == [f"a/{number}" for number in range(CATALOGS_AT_ONCE + 1)])

    await asyncio.wait_for(scene.gateway.mirror.first_read.wait(), PATIENCE_S)
    await until(all_found)


async def test_names_are_told_without_a_catalog_that_does_not_answer(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off, page = list[str](), CatalogReader.page

    async def silent(self: CatalogReader, base: str, **asked: Any) -> CatalogPage:
        if base != "demo/silent":
            return await page(self, base, **asked)
        try:
            await asyncio.Event().wait()
        finally:
            cut_off.append(base)
        raise AssertionError("unreachable")

    monkeypatch.setattr(CatalogReader, "page", silent)
    monkeypatch.setattr("mint_gateway.page.names.CATALOGS_S", 0.1)
    for name in ("quick", "silent"):
        await written(tmp_path / name, f"a/{name}")
        await declare(scene.redis, f"file://{tmp_path}/{name}", f"demo/{name}")
    await scene.place("a/placed", "e-0", base="demo/silent")
    await scene.begin()

    async def others_found() -> bool:
        cut_off.clear()
        found = (await asyncio.wait_for(ask(scene, "adapters?prefix=a/"), LIMIT_S))["names"]
        assert cut_off == ["demo/silent"]
        return bool(found == ["a/placed", "a/quick"])

    await until(others_found)


async def test_a_catalog_that_fails_leaves_no_reading_of_others_behind(
    scene: Scene, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = asyncio.Event(), list[str]()

    async def page(_: CatalogReader, base: str, **__: Any) -> CatalogPage:
        if base == "demo/silent":
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(base)
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        raise ResponseError("WRONGTYPE")

    monkeypatch.setattr(CatalogReader, "page", page)
    monkeypatch.setattr("mint_gateway.page.names.CATALOGS_S", LIMIT_S)
    for name in ("broken", "silent"):
        await declare(scene.redis, local, f"demo/{name}")
    await scene.open()
    await asyncio.wait_for(scene.gateway.mirror.first_read.wait(), PATIENCE_S)
    status, _ = await ask(scene, "adapters?prefix=a/")
    assert (status, ended) == (500, ["demo/silent"])


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=many", "limit=²", "limit=-1", "limit=9999999999"])
async def test_pages_are_bounded(served: Scene, query: str) -> None:
    for call in ("bases", "adapters"):
        status, words = await ask(served, f"{call}?{query}")
        assert (status, "it must be from 1 to" in words) == (400, True)


async def test_answers_are_kept_by_nobody_and_counted_with_other_calls(scene: Scene) -> None:
    await scene.open(Limits(calls=0, farewell_s=0.0))
    await asyncio.wait_for(scene.gateway.mirror.first_read.wait(), PATIENCE_S)
    lists = ("bases", "waves/serving", "waves/training", "policies", "adapters")
    for call in (*lists, "wave?name=a/b", "adapter?name=a"):
        status, _, headers = await fetched(scene, f"{ASKED}/{call}")
        assert (status, headers["Retry-After"]) == (429, "1")
    await scene.open()
    await asyncio.wait_for(scene.gateway.mirror.first_read.wait(), PATIENCE_S)
    assert (await fetched(scene, f"{ASKED}/bases"))[2]["Cache-Control"] == "no-store"


async def test_what_was_known_is_told_while_the_map_is_away(fragile: Scene, own_redis: RedisProcess) -> None:
    await fragile.with_engine()
    own_redis.kill()

    async def away() -> bool:
        return bool((await ask(fragile, "bases"))["map_away"])

    await until(away)
    assert [each["base_model"] for each in (await ask(fragile, "bases"))["bases"]] == [BASE]
    for kind in ("serving", "training"):
        waves = await ask(fragile, f"waves/{kind}")
        assert (waves["waves"], waves["incomplete"]) == ([], [BASE]), "nobody can tell"


async def test_one_reading_of_waves_serves_all_who_look(served: Scene) -> None:
    before = await served.redis.info("commandstats")
    await asyncio.gather(*(ask(served, "waves/serving") for _ in range(20)))
    after = await served.redis.info("commandstats")
    calls = [stats["cmdstat_hgetall"]["calls"] for stats in (before, after)]
    assert calls[1] - calls[0] < 20


async def test_an_engine_s_holdings_are_counted_anew_when_they_change(scene: Scene) -> None:
    engine = await scene.with_engine()
    assert (await ask(scene, "bases"))["bases"][0]["held"]["host"] == 0
    engine.held["demo/a"] = Held("demo/a", Source(f"{STORE}/demo/a"), Tier.HOST)
    await engine.report()
    await scene.seen(engine)

    async def counted() -> bool:
        return bool((await ask(scene, "bases"))["bases"][0]["held"]["host"] == 1)

    await until(counted)
