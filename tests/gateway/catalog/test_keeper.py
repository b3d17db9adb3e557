"""The keeper: whatever happens to Redis, its catalog becomes equal to the manifests again."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mint_contracts import catalog_parts, keys
from mint_contracts.catalog_parts import Parts
from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.catalog_writer import CatalogWriter
from mint_contracts.entries import BYTES_MAX, LABELS_MAX, RANK_MAX, URI_MAX_LENGTH, Entry, check
from mint_contracts.errors import AdapterNotFound, CorruptFile, MapUnavailable, SourceForbidden
from mint_contracts.map_writer import MapWriter
from mint_contracts.names import ADAPTER_MAX_LENGTH, REVISION_MAX_LENGTH
from mint_contracts.part_names import part_name
from mint_contracts.records import BaseRecord, MapChange
from mint_contracts.source import Source
from mint_gateway.catalog import registration
from mint_gateway.catalog.keeper import Keeper
from mint_gateway.client import question
from tests.contracts.catalogs import entry
from tests.gateway.catalogs import COUNT, declare, hanging, in_pieces, lines, listed, many, opened, written
from tests.gateway.scene import BASE, STORE, Scene, complete
from tests.redis_process import RedisProcess, patient, without_replicas
from tests.waiting import until


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


async def test_a_catalog_is_read_while_the_base_is_announced_and_nothing_is_answered_by_that(
    scene: Scene, local: str
) -> None:
    """If everything was lost, the operator waits for the catalog; until then the waves' placements are unknown."""
    await Parts(Source(local)).write(part_name(1000, 1), [entry("a/one")])
    engine = await scene.engine("e-0")
    await scene.open()
    record = BaseRecord(base_model=BASE, store=Source(STORE), catalog=Source(local))
    await scene.writer.apply(BASE, MapChange(base=record, completes=False))
    await complete(scene.redis)
    for asked in ("demo/pirate", "a/one"):
        with pytest.raises(MapUnavailable, match="not complete yet; retry"):
            await scene.client.answer(question("Ahoy?", base_model=BASE, adapter=asked))
    scene.versions[BASE] = await scene.writer.apply(BASE, MapChange(base=record))
    await scene.seen(engine)
    assert scene.gateway.mirror.views[BASE].announced is None
    for asked in ("demo/pirate", "a/one"):
        assert (await scene.client.answer(question("Ahoy?", base_model=BASE, adapter=asked))).engine == "e-0"


async def test_a_gateway_that_runs_on_reads_the_catalog_that_is_announced_where_the_map_was_lost(
    scene: Scene, tmp_path: Path
) -> None:
    await opened(scene, f"file://{tmp_path}/old")
    await scene.redis.flushall()
    moved = Source(f"file://{tmp_path}/new")
    await Parts(moved).write(part_name(1000, 1), [entry("a/one")])
    await scene.writer.apply(BASE, MapChange(base=BaseRecord(BASE, catalog=moved), completes=False))

    async def read() -> bool:
        return (await CatalogReader(scene.redis).state(BASE)).is_complete_copy_of(moved)

    await until(read)
    assert await named(scene.redis) == ["a/one"]


async def test_a_part_whose_writer_ended_before_redis_had_it_is_brought_in(redis_client: Redis, local: str) -> None:
    manifests = Source(local)
    keeper = Keeper(redis_client, lambda: {BASE: manifests})
    await keeper.look(BASE, manifests)
    await Parts(manifests).write(part_name(1_000_000, 1), [entry("a/lost")])
    young = part_name(10**16 - 1, 1)  # its writer may still apply it
    await Parts(manifests).write(young, [entry("a/young")])
    assert len(await keeper.sweep(BASE, manifests)) == 1
    assert await redis_client.hget(keys.catalog(BASE), "count") == "1"
    assert await keeper.sweep(BASE, manifests) == []


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


async def test_a_part_that_is_too_large_to_be_one_costs_only_itself_and_is_left_where_it_is(
    redis_client: Redis, local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_parts, "MOST_BYTES", 200)
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / part_name(1000, 1)).write_bytes(lines([entry("a/one")]))
    large = folder / part_name(2000, 9)
    large.write_bytes(lines(many(9)))
    assert await Keeper(redis_client, dict).rebuild(BASE, Source(local)) == 1
    with pytest.raises(CorruptFile, match="and what belongs there at most 200"):
        await Parts(Source(local)).read(large.name, strict=True)
    assert large.exists()


def test_no_part_that_a_gateway_writes_is_too_large_to_be_read() -> None:
    labels = {f"{number:a<63}": "v" * 63 for number in range(LABELS_MAX)}
    longest = check(Entry("n" * ADAPTER_MAX_LENGTH, "s3://b/" + "\N{PILE OF POO}" * (URI_MAX_LENGTH - 7),
                          "r" * REVISION_MAX_LENGTH, labels, RANK_MAX, BYTES_MAX))  # fmt: skip
    assert len(lines([longest])) * registration.PART_ENTRIES < catalog_parts.MOST_BYTES


async def test_a_defect_in_one_catalog_does_not_stop_the_others(redis_client: Redis, local: str) -> None:
    sources = {"demo/spoilt": Source(uri=5), BASE: Source(local)}  # type: ignore[arg-type]
    async with kept(redis_client, sources) as keeping:
        await complete(redis_client)
        await redis_client.flushall()  # the keeper keeps working after the failure
        await complete(redis_client)
        assert not keeping.done()


async def test_a_claim_that_gateways_do_not_mount_is_named_with_the_value_that_mounts_it(redis_client: Redis) -> None:
    source = Source("pvc://elsewhere/catalog")
    await declare(redis_client, source.uri)
    with pytest.raises(SourceForbidden, match=r"claim 'elsewhere' is not mounted; .* gateway\.catalog\.claims"):
        await Keeper(redis_client, dict).look(BASE, source)


async def test_catalogs_are_known_and_counted_if_they_fail_only_while_they_are_there(
    redis_client: Redis, local: str
) -> None:
    sources = {"demo/spoilt": Source(uri=5), BASE: Source(local)}  # type: ignore[arg-type]
    keeper = Keeper(redis_client, lambda: sources)
    keeping = asyncio.create_task(keeper.run())
    await until(lambda: keeper.failing == 1)
    del sources["demo/spoilt"]
    assert keeper.failing == 0
    sources["demo/later"] = sources.pop(BASE)
    keeper.wake()
    await until(lambda: keeper._seen.keys() == keeper._swept.keys() == {"demo/later"} and not keeper._failed)
    keeping.cancel()
    await asyncio.wait({keeping})


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


async def test_entries_that_redis_lost_in_a_restart_are_imported_again(tmp_path: Path) -> None:
    data, kept_data = tmp_path / "redis", tmp_path / "kept"
    data.mkdir()
    with RedisProcess(data, "--appendonly", "yes") as process:
        async with AsyncExitStack() as stack:
            redis = patient(process.url)
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
    folder, redis = tmp_path / "catalog", patient(own_redis.url)
    parts = await written(folder, "a/one", "a/two")
    with hanging(parts[1]) as go_on:
        rebuilding = asyncio.create_task(Keeper(redis, dict).rebuild(BASE, Source(f"file://{folder}")))
        await until(lambda: redis.zscore(keys.catalog(BASE, "parts"), parts[0].name))
        copy = await redis.hget(keys.catalog(BASE), "copy")
        own_redis.kill()
        own_redis.start()  # as a replica that has received the copy's name but not its first part
        await until(partial(answers, redis))
        await redis.hset(keys.catalog(BASE), "copy", str(copy))
        go_on()
        with pytest.raises(MapUnavailable):
            await rebuilding
    assert not (await CatalogReader(redis).state(BASE)).complete
    await redis.aclose()


async def test_what_a_redis_lacks_that_took_over_during_a_sweep_is_brought_in(
    own_redis: RedisProcess, tmp_path: Path
) -> None:
    folder, redis = tmp_path / "catalog", patient(own_redis.url)
    keeper, manifests = Keeper(redis, dict), Source(f"file://{folder}")
    await keeper.look(BASE, manifests)
    before = {key: await redis.dump(key) or b"" for key in await redis.keys("*")}
    await written(folder, "a/one")
    await keeper.sweep(BASE, manifests)
    parts = await written(folder, "a/three", "a/two", sequence=2000)
    with hanging(parts[1]) as go_on:
        sweeping = asyncio.create_task(keeper.sweep(BASE, manifests))
        await until(lambda: redis.zscore(keys.catalog(BASE, "parts"), parts[0].name))
        own_redis.kill()
        own_redis.start()  # as a replica that has received none of the parts
        await until(partial(answers, redis))
        for key, value in before.items():
            await redis.restore(key, 0, value)
        go_on()
        with pytest.raises(MapUnavailable):
            await sweeping
    await keeper.look(BASE, manifests)
    assert await named(redis) == ["a/one", "a/three", "a/two"]
    await redis.aclose()


async def test_what_is_registered_after_a_redis_with_an_earlier_clock_took_over_replaces_what_that_had_lost(
    redis_client: Redis, tmp_path: Path
) -> None:
    folder, writer = tmp_path / "catalog", CatalogWriter(redis_client)
    keeper, manifests = Keeper(redis_client, dict), Source(f"file://{folder}")
    await keeper.look(BASE, manifests)
    ahead = time.time_ns() // 1000 + 60_000_000  # by the clock of the Redis that failed
    await written(folder, "a/old", "a/one", sequence=ahead)
    await keeper.sweep(BASE, manifests, young=True)
    assert await writer.sequences(BASE, 1) == ahead + 2


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


async def test_maintenance_that_is_cancelled_ends_also_where_redis_takes_no_writes(
    redis_client: Redis, tmp_path: Path
) -> None:
    (part,) = await written(tmp_path, "a/one")
    with hanging(part):
        looking = asyncio.create_task(Keeper(redis_client, dict).look(BASE, Source(f"file://{tmp_path}")))
        await until(lambda: redis_client.hexists(keys.catalog(BASE), "copy"))  # it holds the lock
        async with without_replicas(redis_client):
            looking.cancel()
            await asyncio.wait([looking])
    assert looking.cancelled()


async def test_a_keeper_that_ends_while_it_leaves_a_catalog_alone_releases_its_lock(
    redis_client: Redis, tmp_path: Path
) -> None:
    (part,) = await written(tmp_path, "a/one")
    sources, left = dict[str, Source](), asyncio.Event()

    def manifests() -> Mapping[str, Source]:
        if not sources:
            left.set()
        return sources

    with hanging(part):
        for steps in range(12):
            await redis_client.flushall()
            sources[BASE] = Source(f"file://{tmp_path}")
            keeper = Keeper(redis_client, manifests)
            keeping = asyncio.create_task(keeper.run())
            await until(lambda: redis_client.hexists(keys.catalog(BASE), "copy"))  # it holds the lock
            left.clear()
            sources.clear()
            keeper.wake()
            await left.wait()
            for _ in range(steps):
                await asyncio.sleep(0)
            keeping.cancel()
            await asyncio.wait([keeping])
            assert not await redis_client.exists(keys.catalog(BASE, "keeper")), f"held after step {steps}"


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


async def test_a_base_that_is_forgotten_is_not_read_again_by_who_has_yet_to_hear_of_it(
    redis_client: Redis, tmp_path: Path
) -> None:
    await written(tmp_path, "a/one")
    source = Source(f"file://{tmp_path}")
    await declare(redis_client, source.uri)
    await Keeper(redis_client, dict).look(BASE, source)
    assert await named(redis_client) == ["a/one"]
    await MapWriter(redis_client, epoch=1).forget(BASE)
    with pytest.raises(MapUnavailable):
        await Keeper(redis_client, dict).look(BASE, source)
    with pytest.raises(MapUnavailable):
        await CatalogWriter(redis_client).apply(BASE, [(1, entry("a/two"))], "part")
    assert await redis_client.keys("*") == [keys.epoch(BASE)]
    await declare(redis_client, source.uri)  # the base is created again
    await Keeper(redis_client, dict).look(BASE, source)
    assert await named(redis_client) == ["a/one"]


@asynccontextmanager
async def kept(redis: Redis, sources: Mapping[str, Source]) -> AsyncIterator[asyncio.Task[None]]:
    """Run a keeper during the block; yields its task."""
    keeping = asyncio.create_task(Keeper(redis, lambda: sources).run())
    try:
        yield keeping
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])


async def answers(redis: Redis) -> bool:
    try:
        return bool(await redis.ping())
    except RedisError:
        return False


async def named(redis: Redis) -> list[str]:
    return [each.name for each in await CatalogReader(redis).all(BASE, limit=99)]


async def has(redis: Redis, *names: str) -> bool:
    """Return whether the catalog is complete and has exactly these names."""
    try:
        return await named(redis) == list(names)
    except MapUnavailable:
        return False
