"""A gateway's HTTP answers about models: whether they exist, and since when."""

import asyncio
import time
from collections.abc import Iterable

import pytest

from mint_contracts.records import Tier
from mint_gateway.http import models
from mint_gateway.view import MapView
from tests.contracts.catalogs import entry
from tests.gateway.catalogs import declare, in_pieces, lines
from tests.gateway.http_requests import get
from tests.gateway.scene import BASE, STORE, Scene, complete
from tests.redis_process import RedisProcess
from tests.waiting import until

MODELS = "/v1/models"


async def test_what_only_a_store_has_is_a_model_once_an_engine_has_fetched_it(
    scene: Scene,
) -> None:
    engine = await scene.with_engine()
    await scene.base(store=STORE)
    await scene.seen(engine)
    status, body = await get(scene, f"{MODELS}/demo/found")
    assert (status, "no engine has fetched it from that base's adapter store" in body["error"]["message"]) == (
        404,
        True,
    )
    await engine.hold("demo/found", f"{STORE}/demo/found", Tier.HOST)
    await engine.hold("demo/old", "file:///elsewhere/demo/old", Tier.HOST)
    await scene.seen(engine)
    status, body = await get(scene, f"{MODELS}/demo/found")
    assert (status, body["parent"], body["created"]) == (200, BASE, 0)
    assert (await get(scene, f"{MODELS}/demo/old"))[0] == 404


async def test_adapters_were_created_when_their_revision_was_registered(
    fragile: Scene, local: str, own_redis: RedisProcess
) -> None:
    scene = fragile
    await declare(scene.redis, local)
    known, older = entry("a/known"), entry("a/known", "r1")
    await scene.place("a/known", "e-0", source=known.uri)
    await scene.open()
    await complete(scene.redis)
    began = int(time.time())
    await scene.client.register(in_pieces(lines([older, known, entry("a/other")])))
    await until(lambda: "a/known" in scene.gateway.mirror.views[BASE].placements)

    async def created(path: str) -> int:
        status, body = await get(scene, MODELS + path)
        assert status == 200
        made = (body["data"][0] if "data" in body else body)["created"]
        assert isinstance(made, int)
        return made

    for path in ("", "/a/known", "/a/known@r1", "/a/other"):
        assert began <= await created(path) <= time.time()
    own_redis.kill()
    await until(lambda: scene.gateway.mirror.away)
    assert await created("") == 0


async def test_a_long_list_keeps_nobody_waiting(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a time slice ends with every adapter, others get a turn after each; and each is looked up once."""
    count, turns, serving = 300, "", models.serving

    def looking_up(bases: Iterable[MapView], name: str) -> list[MapView]:
        nonlocal turns
        turns += "a"
        return serving(bases, name)

    monkeypatch.setattr("mint_gateway.time_slices.SLICE_S", -1.0)
    monkeypatch.setattr(models, "serving", looking_up)
    await scene.base(store=STORE)
    await scene.place_many([f"demo/{n}" for n in range(count)], ["e-0"])
    await scene.begin()
    listing = asyncio.create_task(get(scene, MODELS))
    while not listing.done():
        await asyncio.sleep(0)
        turns += "o"
    status, body = listing.result()
    assert (status, len(body["data"]), turns.count("a")) == (200, count + 1, count)
    assert all(each["base_models"] == [BASE] for each in body["data"] if each["parent"])
    assert "aa" not in turns
