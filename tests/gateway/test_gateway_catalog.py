"""The catalog through a gateway: registered in bulk, never lost, resolved for requests, retired."""

import asyncio
import itertools
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import grpc
import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mint_contracts import keys
from mint_contracts.catalog_parts import Parts
from mint_contracts.catalog_pb2 import CatalogEntry, RegisterRequest, RegisterResponse
from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.catalog_writer import CatalogWriter
from mint_contracts.entries import Entry
from mint_contracts.errors import (
    AdapterNotFound,
    CapacityExceeded,
    CatalogNotFound,
    EngineUnavailable,
    InvalidRequest,
    MapUnavailable,
    MintError,
    Overloaded,
)
from mint_contracts.functions import CALL_TIMEOUT_S, connect
from mint_contracts.map_writer import MapWriter
from mint_contracts.part_names import part_name
from mint_contracts.records import BaseRecord, MapChange
from mint_contracts.source import Source
from mint_gateway.catalog.keeper import Keeper
from mint_gateway.catalog.resolver import Resolver
from mint_gateway.client import Client, question
from tests.engine import stores
from tests.gateway.scene import BASE, STORE, Scene, complete
from tests.redis_process import RedisProcess, full_memory
from tests.waiting import until

COUNT = 2500


@pytest.fixture(params=["file", "s3"])
def manifests(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder for manifests in a real store."""
    if request.param == "file":
        yield f"file://{tmp_path}/catalog"
        return
    (tmp_path / "shelf").mkdir()
    with stores.s3(tmp_path / "shelf") as url, stores.credentials(monkeypatch, url):
        yield f"s3://{stores.BUCKET}/catalog"


@pytest.fixture
def local(tmp_path: Path) -> str:
    return f"file://{tmp_path}/catalog"


def entry(name: str, revision: str = "", **labels: str) -> Entry:
    return Entry(name, f"s3://adapters/{name}/{revision or 'only'}", revision, labels, 8, 1000)


def many(count: int = COUNT) -> list[Entry]:
    return [entry(f"team-{n % 5}/bot-{n:05d}", "r1", tier=("gold", "free")[n % 2]) for n in range(count)]


def lines(entries: list[Entry]) -> bytes:
    return b"".join(msgspec.json.encode(each) + b"\n" for each in entries)


async def opened(scene: Scene, manifests: str) -> Client:
    """A gateway, over a base with a catalog that is complete."""
    await declare(scene.redis, manifests)
    await scene.open()
    await complete(scene.redis)
    await until(lambda: BASE in scene.gateway.mirror.views and scene.gateway.mirror.views[BASE].record)
    return scene.client


async def declare(redis: Redis, manifests: str, base: str = BASE, store: Source | None = None) -> None:
    record = BaseRecord(base_model=base, catalog=Source(manifests), store=store)
    await MapWriter(redis, epoch=1).apply(base, MapChange(base=record))


async def test_a_stream_is_registered_listed_resolved_and_retired(scene: Scene, manifests: str) -> None:
    client = await opened(scene, manifests)
    everything = many()
    told = await client.register(in_pieces(lines(everything)))
    assert (told.registered, told.refused, told.parts) == (COUNT, 0, 1)
    first = await client.catalog_page(BASE, prefix="team-1/", labels={"tier": "gold"}, size=7)
    assert first.total == COUNT
    gold = [each.name for each in everything if each.labels["tier"] == "gold"]
    wanted = sorted(name for name in gold if name.startswith("team-1/"))
    assert [each.name for each in first.entries] == wanted[:7]
    second = await client.catalog_page(BASE, prefix="team-1/", labels={"tier": "gold"}, token=first.next_page_token)
    assert [each.name for each in second.entries] == wanted[7:107]
    found = await client.resolve(everything[5].name)
    assert (found.uri, found.revision, found.rank, dict(found.labels)) == (
        everything[5].uri, "r1", 8, everything[5].labels
    )  # fmt: skip
    await client.retire([everything[5].name])
    with pytest.raises(AdapterNotFound, match="was retired"):
        await client.resolve(everything[5].name)
    with pytest.raises(AdapterNotFound, match="not in the catalog"):
        await client.resolve("team-1/never")


async def test_registering_right_after_the_base_was_declared_waits_for_its_catalog(scene: Scene, local: str) -> None:
    await scene.open()
    await declare(scene.redis, local)
    await until(lambda: BASE in scene.gateway.mirror.views and scene.gateway.mirror.views[BASE].record)
    told = await scene.client.register(in_pieces(lines([entry("a/one")])))
    assert told.registered == 1
    await scene.client.retire(["a/one"])
    assert await listed(scene.client) == {}


async def test_registering_is_refused_when_the_catalog_does_not_become_whole(
    scene: Scene, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_gateway.catalog.catalogs.WHOLE_WAIT_S", 0.1)
    client = await opened(scene, local)
    await scene.redis.set(keys.catalog(BASE, "keeper"), "another gateway")  # first: this one must not make it whole
    await scene.redis.hdel(keys.catalog(BASE), "complete")
    with pytest.raises(MapUnavailable, match="being read from its manifests"):
        await client.register(in_pieces(lines([entry("a/one")])))


async def test_losing_redis_loses_nothing(scene: Scene, manifests: str) -> None:
    client = await opened(scene, manifests)
    everything = many()
    await client.register(in_pieces(lines(everything)))
    await client.register(in_pieces(lines([entry(everything[0].name, "r2")])))
    await client.retire([everything[1].name])
    before = await listed(client)
    await scene.redis.flushall()
    await declare(scene.redis, manifests)
    await complete(scene.redis)
    assert await listed(client) == before
    assert len(before) == COUNT - 1
    assert before[everything[0].name].revision == "r2"
    assert (await client.resolve(f"{everything[0].name}@r1")).uri == everything[0].uri


async def test_bad_lines_are_refused_each_by_its_number_and_the_others_registered(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    text = lines([entry("a/one")]) + b"\n" + b'{"name": "a/two"}\n' + lines([entry("a/three")]) + b"nonsense\n"
    text += lines([Entry("a/four", "ftp://x/a/four")]) + b'{"name": "a/five", "uri": "s3://b/caf\xe9"}\n'
    told = await client.register(in_pieces(text, size=40))
    assert told.registered == 2
    assert [(each.line, each.reason) for each in told.refusals] == [
        (3, "InvalidRequest"),
        (5, "InvalidRequest"),
        (6, "SourceForbidden"),
        (7, "InvalidRequest"),
    ]
    assert "needs a uri" in told.refusals[0].message
    assert list(await listed(client)) == ["a/one", "a/three"]


async def test_entries_count_as_lines_too(scene: Scene, local: str) -> None:
    client = await opened(scene, local)

    async def requests() -> AsyncIterator[RegisterRequest]:
        yield RegisterRequest(base_model=BASE, lines=lines([entry("a/one")]), entries=[CatalogEntry(name="a b")])
        yield RegisterRequest(entries=[CatalogEntry(name="a/two", uri="s3://b/a/two", labels={"tier": "gold"})])

    told = await client.register(requests())
    assert (told.registered, [each.line for each in told.refusals]) == (2, [2])
    assert (await client.resolve("a/two")).labels == {"tier": "gold"}


async def test_several_register_at_once(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    groups = [[entry(f"g{group}/bot-{n:04d}") for n in range(600)] for group in range(4)]
    same = [entry("shared/bot", f"r{group}") for group in range(4)]
    streams = [lines([*group, each]) for group, each in zip(groups, same, strict=True)]
    await asyncio.gather(*[client.register(in_pieces(text)) for text in streams])
    found = await listed(client)
    assert sorted(found) == sorted({each.name for group in groups for each in group} | {"shared/bot"})
    before = found["shared/bot"].revision
    await scene.redis.flushall()
    await declare(scene.redis, local)
    await complete(scene.redis)
    assert (await listed(client))["shared/bot"].revision == before  # its manifests say the same as Redis did


async def test_streams_beyond_the_limit_are_told_when_to_come_back(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    held = asyncio.Event()

    async def slow() -> AsyncIterator[RegisterRequest]:
        yield RegisterRequest(base_model=BASE, lines=b"")
        await held.wait()

    async def holding() -> None:
        async def admitted() -> bool:  # one of those below may be in its place for a moment
            try:
                await client.register(slow())
            except Overloaded:
                return False
            return True

        await until(admitted)

    registering = [asyncio.create_task(holding()) for _ in range(4)]

    async def refused() -> bool:
        try:
            await client.register(in_pieces(b""))
        except Overloaded as error:
            return error.retry_after_s is not None
        return False

    await until(refused)
    held.set()
    await asyncio.gather(*registering)


async def test_a_base_without_a_catalog_says_how_to_get_one(scene: Scene) -> None:
    await scene.base()
    await scene.open()
    await scene.seen()
    with pytest.raises(CatalogNotFound, match=r"spec\.catalog\.manifests\.uri"):
        await scene.client.catalog_page(BASE)


async def test_what_no_page_can_be_is_refused(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    with pytest.raises(InvalidRequest, match="page_size"):
        await client.catalog_page(BASE, size=1001)
    with pytest.raises(InvalidRequest, match="label"):
        await client.catalog_page(BASE, labels={"a b": "c"})
    with pytest.raises(InvalidRequest, match="names"):
        await client.retire([])


async def test_a_part_whose_writer_ended_before_redis_had_it_is_brought_in(redis_client: Redis, local: str) -> None:
    manifests = Source(local)
    keeper = Keeper(redis_client, lambda: {BASE: manifests})
    await keeper.look(BASE, manifests)
    await Parts(manifests).write(part_name(1_000_000, 1), [entry("a/lost")])
    young = part_name(10**16 - 1, 1)  # somebody may still be at it
    await Parts(manifests).write(young, [entry("a/young")])
    assert len(await keeper.sweep(BASE, manifests)) == 1
    assert await redis_client.hget(keys.catalog(BASE), "count") == "1"
    assert await keeper.sweep(BASE, manifests) == []


async def test_where_redis_is_full_registering_is_refused_and_retiring_is_not(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    await client.register(in_pieces(lines([entry("a/one"), entry("a/two")])))
    async with full_memory(scene.redis):
        with pytest.raises(CapacityExceeded, match="retire adapters, or raise its maxmemory"):
            await client.register(in_pieces(lines([entry("a/three")])))
        await client.retire(["a/one", "a/never"])
        assert (await listed(client)).keys() == {"a/two"}
    await scene.redis.flushall()  # what is durable says the same
    await declare(scene.redis, local)
    await complete(scene.redis)
    assert (await listed(client)).keys() == {"a/two"}


@pytest.mark.parametrize(
    "line",
    [b"{torn\n", b'{"name":"a/x","uri":"s3://b/\xff"}\n', b'{"name":"%s","uri":"s3://b/x"}\n' % (b"x" * 300)],
    ids=["torn", "no UTF-8", "no name"],
)
async def test_an_unreadable_line_of_a_manifest_costs_only_itself(
    redis_client: Redis, local: str, tmp_path: Path, line: bytes
) -> None:
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / part_name(1000, 3)).write_bytes(lines([entry("a/one")]) + line + lines([entry("a/two")]))
    (folder / "README").write_text("not a part")
    assert await Keeper(redis_client, dict).rebuild(BASE, Source(local)) == 2


async def test_a_defect_met_by_one_catalog_costs_no_other_its_keeping(redis_client: Redis, local: str) -> None:
    sources = {"demo/spoilt": Source(uri=5), BASE: Source(local)}  # type: ignore[arg-type]
    async with kept(redis_client, sources) as keeping:
        await complete(redis_client)
        await redis_client.flushall()  # the keeper goes on after the defect
        await complete(redis_client)
        assert not keeping.done()


async def test_a_redis_that_was_emptied_while_it_was_read_into_gets_all_the_same(
    redis_client: Redis, tmp_path: Path
) -> None:
    parts = await written(tmp_path, "a/one", "a/two", "a/three")
    with hanging(parts[1]) as go_on:
        async with kept(redis_client, {BASE: Source(f"file://{tmp_path}")}):
            await until(lambda: redis_client.zscore(keys.catalog(BASE, "parts"), parts[0].name))
            await redis_client.flushall()
            go_on()
            await complete(redis_client)
            assert await named(redis_client) == ["a/one", "a/three", "a/two"]


async def test_what_redis_had_lost_when_it_came_back_is_brought_in_again(tmp_path: Path) -> None:
    data, kept_data = tmp_path / "redis", tmp_path / "kept"
    data.mkdir()
    with RedisProcess(data, "--appendonly", "yes") as process:
        async with AsyncExitStack() as stack:
            redis = connect(process.url)
            stack.push_async_callback(redis.aclose)
            client = await opened(Scene(redis, stack), f"file://{tmp_path}/catalog")
            await client.register(in_pieces(lines([entry("a/before")])))
            shutil.copytree(data, kept_data)
            await client.register(in_pieces(lines([entry("a/after")])))
            process.kill()
            shutil.rmtree(data)
            kept_data.rename(data)
            process.start()

            async def found() -> bool:
                try:
                    return (await client.resolve("a/after")).name == "a/after"
                except (AdapterNotFound, MapUnavailable):
                    return False

            await until(found)


async def test_a_redis_that_took_over_while_it_was_read_into_is_read_into_anew(
    own_redis: RedisProcess, tmp_path: Path
) -> None:
    folder, redis = tmp_path / "catalog", connect(own_redis.url)
    parts = await written(folder, "a/one", "a/two")
    with hanging(parts[1]) as go_on:
        rebuilding = asyncio.create_task(Keeper(redis, dict).rebuild(BASE, Source(f"file://{folder}")))
        await until(lambda: redis.zscore(keys.catalog(BASE, "parts"), parts[0].name))
        copy = await redis.hget(keys.catalog(BASE), "copy")
        own_redis.kill()
        own_redis.start()  # as a replica that had been told of the copy, and not yet of its first part
        await until(partial(answers, redis))
        await redis.hset(keys.catalog(BASE), "copy", str(copy))
        go_on()
        with pytest.raises(MapUnavailable):
            await rebuilding
    assert not (await CatalogReader(redis).state(BASE)).complete
    await redis.aclose()


async def test_other_manifests_are_another_catalog(redis_client: Redis, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    await written(first, "a/mistaken", sequence=time.time_ns() // 1000)
    await written(second, "b/one", "b/two")
    sources = {BASE: Source(f"file://{first}")}
    async with kept(redis_client, sources):
        await until(partial(has, redis_client, "a/mistaken"))
        sources[BASE] = Source(f"file://{second}")
        await until(partial(has, redis_client, "b/one", "b/two"))


async def test_manifests_that_hang_are_left_for_others(redis_client: Redis, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    (part,) = await written(first, "a/one")
    await written(second, "b/one")
    sources = {BASE: Source(f"file://{first}")}
    with hanging(part):
        async with kept(redis_client, sources):
            await until(lambda: redis_client.exists(keys.catalog(BASE, "keeper")))
            sources[BASE] = Source(f"file://{second}")
            await until(partial(has, redis_client, "b/one"))


async def test_folders_that_hang_keep_no_other_base_from_registering(
    scene: Scene, local: str, tmp_path: Path
) -> None:
    bases = [f"demo/hung-{number}" for number in range(9)]  # they read more parts at once than any pool has threads
    parts = [await written(tmp_path / base, "a/1", "a/2", "a/3", "a/4") for base in bases]
    with hanging(*itertools.chain(*parts)):
        for base in bases:
            await declare(scene.redis, f"file://{tmp_path / base}", base)
        await scene.open()
        for base in bases:
            await until(partial(scene.redis.exists, keys.catalog(base, "keeper")))
        await declare(scene.redis, local)
        await until(lambda: BASE in scene.gateway.mirror.views and scene.gateway.mirror.views[BASE].record)
        told = await scene.client.register(in_pieces(lines([entry("a/one")])))
    assert told.registered == 1


async def test_a_base_that_is_forgotten_while_its_manifests_are_read_leaves_nothing(
    redis_client: Redis, tmp_path: Path
) -> None:
    parts = await written(tmp_path, "a/one", "a/two", "a/three")
    with hanging(parts[1]) as go_on:
        rebuilding = asyncio.create_task(Keeper(redis_client, dict).rebuild(BASE, Source(f"file://{tmp_path}")))
        await until(lambda: redis_client.zscore(keys.catalog(BASE, "parts"), parts[0].name))
        await MapWriter(redis_client, epoch=1).forget(BASE)
        go_on()
        with pytest.raises(MapUnavailable):
            await rebuilding
    assert await redis_client.keys(f"{keys.catalog(BASE)}*") == []


async def test_a_request_goes_where_the_catalog_says(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    engine = await scene.engine("one")
    await scene.seen(engine)
    await client.register(in_pieces(lines([entry("a/b", "r1"), entry("a/b", "r2")])))
    sneaky = question("hi", adapter="a/b")
    sneaky.whence.uri = "file:///etc"
    await client.answer(sneaky)
    await client.answer(question("hi", adapter="a/b@r1"))
    assert [(each.adapter, each.whence.uri) for each in engine.seen] == [
        ("a/b", "s3://adapters/a/b/r2"),
        ("a/b@r1", "s3://adapters/a/b/r1"),
    ]
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

    async def gone(asked: str) -> bool:  # as soon as the gateway has heard of it
        try:
            await client.answer(question("hi", adapter=asked))
        except AdapterNotFound as error:
            return "was retired" in str(error)
        return False

    for asked in ("a/stored", "a/known", "a/known@r1"):
        await until(partial(gone, asked), timeout_s=10.0)
        with pytest.raises(AdapterNotFound, match="register it again"):
            await client.explain(asked)
    await client.answer(question("hi", adapter="a/other"))
    await scene.redis.flushall()
    await declare(scene.redis, local, store=Source(STORE))
    await complete(scene.redis)
    await until(partial(gone, "a/stored"), timeout_s=10.0)
    await client.register(in_pieces(lines([entry("a/stored", "r2")])))
    await until(lambda: _answered(client, "a/stored"), timeout_s=10.0)
    assert engine.seen[-1].whence.uri == "s3://adapters/a/stored/r2"


async def _answered(client: Client, adapter: str) -> bool:
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


async def test_what_nobody_foresaw_is_counted_as_such_and_not_as_the_client_s_leaving(
    scene: Scene, local: str
) -> None:
    client = await opened(scene, local)
    await scene.redis.set(keys.catalog(BASE, "directory"), "no directory")
    with pytest.raises(MintError):
        await client.answer(question("hi", adapter="a/b"))
    counted = scene.gateway.metrics.registry.get_sample_value
    await until(lambda: counted("mint_gateway_requests_total", {"code": "UNKNOWN"}) == 1)


async def test_a_new_revision_is_what_the_next_request_gets(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    engine = await scene.engine("one")
    await scene.seen(engine)
    for revision in ("r1", "r2", "r3"):
        await client.register(in_pieces(lines([entry("a/b", revision)])))

        async def newest(revision: str = revision) -> bool:
            await client.answer(question("hi", adapter="a/b"))
            return engine.seen[-1].whence.revision == revision

        await until(newest, timeout_s=10.0)


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
    client = await opened(scene, local)
    engine = await scene.engine("one")
    engine.refuse = EngineUnavailable("engine 'one'", "starts anew", retry_after_s=1.0)
    await client.register(in_pieces(lines([entry("a/b", "r2")])))
    await scene.place("a/b", "one", source="s3://adapters/a/b/r1")
    await scene.seen(engine)
    asking = asyncio.create_task(client.answer(question("hi", adapter="a/b")))
    await until(lambda: engine.seen)
    await scene.unplace("a/b")
    await scene.seen(engine)
    engine.refuse = None
    await asyncio.wait_for(asking, 60)
    assert engine.seen[0].whence.uri == "s3://adapters/a/b/r1"
    assert engine.seen[-1].whence.uri == "s3://adapters/a/b/r2"


async def test_what_is_known_is_answered_at_once_while_redis_is_silent(
    fragile: Scene, own_redis: RedisProcess, local: str
) -> None:
    client = await opened(fragile, local)
    engine = await fragile.engine("one")
    await fragile.seen(engine)
    await client.register(in_pieces(lines([entry("a/b")])))
    await client.answer(question("hi", adapter="a/b"))
    with own_redis.silent():
        await until(lambda: fragile.gateway.mirror.away)
        began = time.monotonic()
        await client.answer(question("hi", adapter="a/b"))
        assert time.monotonic() - began < CALL_TIMEOUT_S / 2


async def in_pieces(text: bytes, size: int = 60_000) -> AsyncIterator[RegisterRequest]:
    """Whole lines, about `size` bytes of them a message."""
    pending = b""
    for line in text.splitlines(keepends=True):
        pending += line
        if len(pending) >= size:
            yield RegisterRequest(base_model=BASE, lines=pending)
            pending = b""
    yield RegisterRequest(base_model=BASE, lines=pending)


async def written(folder: Path, *names: str, sequence: int = 1000) -> list[Path]:
    """The files of one manifest part for each name."""
    parts = [part_name(sequence + number, 1) for number in range(len(names))]
    for part, name in zip(parts, names, strict=True):
        await Parts(Source(f"file://{folder}")).write(part, [entry(name)])
    return [folder / part for part in parts]


@asynccontextmanager
async def kept(redis: Redis, sources: Mapping[str, Source]) -> AsyncIterator[asyncio.Task[None]]:
    """A keeper at work."""
    keeping = asyncio.create_task(Keeper(redis, lambda: sources).run())
    try:
        yield keeping
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])


@contextmanager
def hanging(*parts: Path) -> Iterator[Callable[[], None]]:
    """Files on a storage that hangs until what this gives is called, or the block ends."""
    waiting = [(part, part.read_bytes()) for part in parts]
    for part in parts:
        part.unlink()
        os.mkfifo(part)

    def go_on() -> None:
        while waiting:
            part, content = waiting.pop()
            pipe = os.open(part, os.O_RDWR)  # those who wait for its beginning get this, others the file
            os.write(pipe, content)
            whole = part.with_name(f".{part.name}")
            whole.write_bytes(content)
            os.replace(whole, part)
            os.close(pipe)

    try:
        yield go_on
    finally:
        go_on()


async def answers(redis: Redis) -> bool:
    try:
        return bool(await redis.ping())
    except RedisError:
        return False


async def named(redis: Redis) -> list[str]:
    return [each.name for each in await CatalogReader(redis).all(BASE, limit=99)]


async def has(redis: Redis, *names: str) -> bool:
    """Whether these are the names of a catalog that is complete."""
    try:
        return await named(redis) == list(names)
    except MapUnavailable:
        return False


async def listed(client: Client) -> dict[str, CatalogEntry]:
    found: dict[str, CatalogEntry] = {}
    token = ""
    while True:
        page = await client.catalog_page(BASE, size=1000, token=token)
        found |= {each.name: each for each in page.entries}
        token = page.next_page_token
        if not token:
            return found


async def test_a_stream_that_breaks_leaves_the_gateway_as_it_was(scene: Scene, local: str) -> None:
    client = await opened(scene, local)

    async def broken() -> AsyncIterator[RegisterRequest]:
        yield RegisterRequest(base_model=BASE, lines=lines(many(100)))
        raise RuntimeError("the client ended")

    for _ in range(6):  # more often than streams may be open at once
        with pytest.raises((grpc.aio.AioRpcError, RuntimeError, asyncio.CancelledError)):
            await client.register(broken())
    told: RegisterResponse = await client.register(in_pieces(lines(many(100))))
    assert told.registered == 100
