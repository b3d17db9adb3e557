"""What a name in a request means: the catalog's newest revision, or nothing, unless a wave has placed it."""

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.catalog_parts import Parts
from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.catalog_writer import NAMES_PER_NEWS, CatalogWriter
from mint_contracts.entries import Entry
from mint_contracts.errors import AdapterNotFound, EngineUnavailable, MapUnavailable, MintError
from mint_contracts.functions import connect
from mint_contracts.source import Source
from mint_gateway.catalog.resolver import Resolver
from mint_gateway.client import Client, question
from tests.contracts.catalogs import entry
from tests.gateway.catalogs import declare, followed, hanging, in_pieces, lines, many, opened
from tests.gateway.scene import BASE, PATIENT, STORE, Scene, complete
from tests.redis_process import RedisProcess
from tests.waiting import until


async def test_a_request_goes_where_the_catalog_says(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    engine = await scene.engine("one")
    await scene.seen(engine)
    await client.register(in_pieces(lines([entry("a/b", "r1"), entry("a/b", "r2")])))
    sneaky = question("hi", adapter="a/b")
    sneaky.whence.uri, sneaky.client = "file:///etc", "somebody"
    await client.answer(sneaky)
    await client.answer(question("hi", adapter="a/b@r1"))
    assert [(each.adapter, each.whence.uri) for each in engine.seen] == [
        ("a/b", "s3://adapters/a/b/r2"),
        ("a/b@r1", "s3://adapters/a/b/r1"),
    ]
    assert {each.client for each in engine.seen} == {""}, "without keys all are one client"
    assert (await client.explain("a/b@r1")).source_uri == "s3://adapters/a/b/r1"
    with pytest.raises(AdapterNotFound, match="not in that base's catalog"):
        await client.answer(question("hi", adapter="a/b@r9"))


async def test_a_retired_name_is_answered_no_more_though_the_store_may_have_it(scene: Scene, local: str) -> None:
    await declare(scene.redis, local, store=Source(STORE))
    await scene.open()
    await complete(scene.redis)
    client, engine = scene.client, await scene.engine("one")
    await scene.seen(engine)
    await client.answer(question("hi", adapter="a/stored"))
    await client.register(in_pieces(lines([entry("a/known", "r1")])))
    await client.retire(["a/stored", "a/known"])

    async def gone(asked: str) -> bool:  # once the gateway has noticed it
        try:
            await client.answer(question("hi", adapter=asked))
        except AdapterNotFound as error:
            return "was retired" in str(error)
        return False

    for asked in ("a/stored", "a/known", "a/known@r1"):
        await until(partial(gone, asked))
        with pytest.raises(AdapterNotFound, match="register it again"):
            await client.explain(asked)
    await client.answer(question("hi", adapter="a/other"))
    await scene.redis.flushall()
    await declare(scene.redis, local, store=Source(STORE))
    await complete(scene.redis)
    await until(partial(gone, "a/stored"))
    await client.register(in_pieces(lines([entry("a/stored", "r2")])))
    await until(lambda: answered(client, "a/stored"))
    assert engine.seen[-1].whence.uri == "s3://adapters/a/stored/r2"


async def answered(client: Client, adapter: str) -> bool:
    try:
        await client.answer(question("hi", adapter=adapter))
    except AdapterNotFound:
        return False
    return True


async def test_retired_names_are_remembered_where_the_store_may_have_them(scene: Scene, local: str) -> None:
    await declare(scene.redis, local, store=Source(STORE))
    await scene.open()
    await complete(scene.redis)
    writer, reader = CatalogWriter(scene.redis), CatalogReader(scene.redis)
    old = [Entry(f"a/gone-{number:03d}", retired=True) for number in range(40)]
    await writer.apply(BASE, list(enumerate(old, 1)), "long ago")
    await scene.client.register(in_pieces(lines([entry(f"a/here-{number:03d}") for number in range(100)])))
    assert await reader.find(BASE, "a/gone-007") == old[7]


async def test_an_unforeseen_error_is_not_counted_as_a_client_leaving(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    await scene.redis.set(keys.catalog(BASE, "directory"), "no directory")
    with pytest.raises(MintError):
        await client.answer(question("hi", adapter="a/b"))
    counted = scene.gateway.metrics.registry.get_sample_value
    await until(lambda: counted("mint_gateway_requests_total", {"code": "UNKNOWN", "client": ""}) == 1)


async def test_a_new_revision_is_what_the_next_request_gets(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    engine = await scene.engine("one")
    await scene.seen(engine)
    for revision in ("r1", "r2", "r3"):
        await client.register(in_pieces(lines([entry("a/b", revision)])))

        async def newest(revision: str = revision) -> bool:
            await client.answer(question("hi", adapter="a/b"))
            return engine.seen[-1].whence.revision == revision

        await until(newest)


async def test_news_of_a_name_are_news_of_its_revisions(redis_client: Redis) -> None:
    writer, resolver = CatalogWriter(redis_client), Resolver(CatalogReader(redis_client), clock=lambda: 0.0)
    here, gone = Entry("a/b", "s3://adapters/a/b", "r1"), Entry("a/b", retired=True)
    copy = await writer.begin(BASE, "s3://catalog/smol")
    await writer.apply(BASE, [(1, here)], "one")
    await writer.complete(BASE, copy, 1)
    assert [await resolver.find(BASE, asked) for asked in ("a/b", "a/b@r1")] == [here, here]
    await writer.apply(BASE, [(2, gone)], "two")
    resolver.forget(BASE, ["a/b"])
    assert [await resolver.find(BASE, asked) for asked in ("a/b", "a/b@r1")] == [gone, gone]


async def test_what_was_looked_up_is_answered_while_a_lost_catalog_is_read(
    scene: Scene, tmp_path: Path, news: list[tuple[str, str]]
) -> None:
    client = await opened(scene, f"file://{tmp_path}")
    await followed(scene.redis)
    await client.register(in_pieces(lines(many(2 * NAMES_PER_NEWS))))
    await client.register(in_pieces(lines([entry("z/last")])))
    await until(lambda: (BASE, "z/last") in news)
    known, parts = many(1)[0].name, await Parts(Source(f"file://{tmp_path}")).names()
    await client.resolve(known)
    with hanging(tmp_path / parts[-1]) as go_on:
        await scene.redis.hdel(keys.catalog(BASE), "complete")

        async def first_part_is_in() -> bool:
            return await scene.redis.hget(keys.catalog(BASE), "count") == str(2 * NAMES_PER_NEWS)

        await until(first_part_is_in)
        await scene.redis.client_kill_filter(_type="pubsub")
        await followed(scene.redis)
        assert (await client.resolve(known)).name == known
        with pytest.raises(MapUnavailable, match="being read from its manifests"):
            await client.resolve("z/last")
        go_on()
        await complete(scene.redis)
        assert (await client.resolve("z/last")).name == "z/last"


async def test_a_catalog_that_was_read_is_asked_anew(redis_client: Redis) -> None:
    writer, reader = CatalogWriter(redis_client), CatalogReader(redis_client)
    async with reader.news(BASE) as wait:
        copy = await writer.begin(BASE, "s3://catalog/smol")
        await writer.apply(BASE, [(1, entry("a/b"))], "one", copy=copy)
        await writer.complete(BASE, copy, 1)
        assert await until(lambda: wait(10.0)) == ["*"], "and nobody was told of the copy while it was incomplete"


async def test_a_placed_adapter_stays_where_its_wave_has_it(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    engine = await scene.engine("one")
    await client.register(in_pieces(lines([entry("a/b", "r2")])))
    await scene.place("a/b", "one", source="s3://adapters/a/b/r1")
    await scene.seen(engine)
    await client.answer(question("hi", adapter="a/b"))
    assert engine.seen[-1].whence.uri == "s3://adapters/a/b/r1"


async def test_an_adapter_whose_wave_goes_while_a_request_waits_is_where_the_catalog_has_it(
    scene: Scene, local: str
) -> None:
    client = await opened(scene, local, PATIENT)
    engine = await scene.engine("one")
    engine.refuse = EngineUnavailable("engine 'one'", "starts anew", retry_after_s=1.0)
    await client.register(in_pieces(lines([entry("a/b", "r2")])))
    await scene.place("a/b", "one", source="s3://adapters/a/b/r1")
    await scene.seen(engine)
    asking = asyncio.create_task(client.answer(question("hi", adapter="a/b")))
    await until(lambda: engine.seen)
    await scene.unplace("a/b")
    assert engine.seen[0].whence.uri == "s3://adapters/a/b/r1"
    await until(lambda: engine.seen[-1].whence.uri == "s3://adapters/a/b/r2")
    engine.refuse = None
    await asyncio.wait_for(asking, 60)
    assert engine.seen[-1].whence.uri == "s3://adapters/a/b/r2"


async def test_what_is_known_is_answered_without_asking_a_redis_that_is_silent(
    own_redis: RedisProcess, local: str, news: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody_asks(*_: object) -> None:
        raise AssertionError("a request waits for Redis")

    async with AsyncExitStack() as stack:
        redis = connect(own_redis.url)  # a patient connection would wait for a Redis that is away
        stack.push_async_callback(redis.aclose)
        scene = Scene(redis, stack)
        client = await opened(scene, local)
        engine = await scene.engine("one")
        await scene.seen(engine)
        await followed(redis)
        await client.register(in_pieces(lines([entry("a/b")])))
        await until(lambda: (BASE, "a/b") in news)
        await client.answer(question("hi", adapter="a/b"))
        with own_redis.silent():
            await until(lambda: scene.gateway.mirror.away)
            monkeypatch.setattr(CatalogReader, "find", nobody_asks)
            await client.answer(question("hi", adapter="a/b"))
