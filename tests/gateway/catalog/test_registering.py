"""Registering and retiring adapters through a gateway: in bulk, with refusals per line, concurrently, and bounded."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc
import msgspec
import pytest
from redis.asyncio import Redis

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
    Internal,
    InvalidRequest,
    MapUnavailable,
    Overloaded,
)
from mint_contracts.part_names import part_name
from mint_contracts.source import Source
from mint_gateway.catalog.keeper import Keeper
from mint_gateway.catalog.pace import Pace
from mint_gateway.catalog.registration import Registration
from mint_gateway.catalog.servicer import OF_ONE_KEY, STREAMS, _next
from mint_gateway.client import Client
from tests.contracts.catalogs import entry
from tests.gateway.catalogs import COUNT, declare, hanging, in_pieces, lines, listed, many, opened, written
from tests.gateway.scene import BASE, LIMITS, Scene, complete
from tests.gateway.tenants import SHARED, Tenants, stream
from tests.redis_process import full_memory
from tests.waiting import PATIENCE_S, until


async def test_a_stream_is_registered_listed_resolved_and_retired(scene: Scene, manifests: str) -> None:
    client = await opened(scene, manifests)
    everything = many()
    response = await client.register(in_pieces(lines(everything)))
    assert (response.registered, response.refused, response.parts) == (COUNT, 0, 1)
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


async def test_retiring_tells_which_names_meant_nothing_before(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    known = [entry(f"a/{number:04}") for number in range(1500)]  # takes more than one request to Redis
    await client.register(in_pieces(lines([*known, entry("a/two", "r1"), entry("a/two", "r2")])))
    wrong = ["0/first", "a/0001/x", "z/last"]
    asked = [*(each.name for each in known[:1200]), "a/two", *wrong, "z/last"]
    assert await client.retire(asked) == wrong
    assert await client.retire(["z/last", "a/two", "a/1499"]) == ["z/last", "a/two"], "nor what was retired before"
    assert len(await listed(client)) == 299


async def test_registering_right_after_the_base_was_declared_waits_for_its_catalog(scene: Scene, local: str) -> None:
    await scene.open()
    await declare(scene.redis, local)
    await until(lambda: BASE in scene.gateway.mirror.views and scene.gateway.mirror.views[BASE].record)
    response = await scene.client.register(in_pieces(lines([entry("a/one")])))
    assert response.registered == 1
    await scene.client.retire(["a/one"])
    assert await listed(scene.client) == {}


async def test_registering_is_refused_when_the_catalog_does_not_become_whole(
    scene: Scene, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_gateway.catalog.catalogs.WHOLE_WAIT_S", 0.1)
    client = await opened(scene, local)
    await scene.redis.set(keys.catalog(BASE, "keeper"), "another gateway")  # so that this gateway does not rebuild it
    await scene.redis.hdel(keys.catalog(BASE), "complete")
    with pytest.raises(MapUnavailable, match=r"being read from its manifests; .* see the gateways' log"):
        await client.register(in_pieces(lines([entry("a/one")])))


async def test_bad_lines_are_refused_each_by_its_number_and_the_others_registered(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    text = lines([entry("a/one")]) + b"\n" + b'{"name": "a/two"}\n' + lines([entry("a/three")]) + b"nonsense\n"
    text += lines([Entry("a/four", "ftp://x/a/four")]) + b'{"name": "a/five", "uri": "s3://b/caf\xe9"}\n'
    response = await client.register(in_pieces(text, size=40))
    assert response.registered == 2
    assert [(each.line, each.reason) for each in response.refusals] == [
        (3, "InvalidRequest"),
        (5, "InvalidRequest"),
        (6, "SourceForbidden"),
        (7, "InvalidRequest"),
    ]
    assert "needs a uri" in response.refusals[0].message
    assert list(await listed(client)) == ["a/one", "a/three"]


async def test_entries_count_as_lines_too(scene: Scene, local: str) -> None:
    client = await opened(scene, local)

    async def requests() -> AsyncIterator[RegisterRequest]:
        yield RegisterRequest(base_model=BASE, lines=lines([entry("a/one")]), entries=[CatalogEntry(name="a b")])
        yield RegisterRequest(entries=[CatalogEntry(name="a/two", uri="s3://b/a/two", labels={"tier": "gold"})])

    response = await client.register(requests())
    assert (response.registered, [each.line for each in response.refusals]) == (2, [2])
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
    assert (await listed(client))["shared/bot"].revision == before  # the manifests agree with what Redis had


async def holding(client: Client, base: str, held: asyncio.Event) -> None:
    """Occupy one of the registration streams until `held` is set."""

    async def slow() -> AsyncIterator[RegisterRequest]:
        yield RegisterRequest(base_model=base, lines=b"")
        await asyncio.wait_for(held.wait(), PATIENCE_S)

    async def admitted() -> bool:  # a stream about to be refused may occupy the place briefly
        try:
            await client.register(slow())
        except Overloaded:
            return False
        return True

    await until(admitted)


async def test_streams_beyond_the_limit_are_told_when_to_come_back(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    held = asyncio.Event()
    registering = [asyncio.create_task(holding(client, BASE, held)) for _ in range(4)]

    async def refused() -> bool:
        try:
            await client.register(in_pieces(b""))
        except Overloaded as error:
            return error.retry_after_s is not None
        return False

    await until(refused)
    held.set()
    await asyncio.gather(*registering)


async def test_streams_of_messages_without_a_word_in_them_keep_no_others_from_registering(
    scene: Scene, local: str
) -> None:
    client = await opened(scene, local, msgspec.structs.replace(LIMITS, silence_s=0.2))

    async def wordless() -> AsyncIterator[RegisterRequest]:
        while True:
            yield RegisterRequest(base_model=BASE)
            await asyncio.sleep(0.01)

    async def refused() -> InvalidRequest | None:
        try:
            await client.register(wordless())
        except InvalidRequest as error:  # on a busy machine its first message may come too late
            return None if "has sent nothing" in str(error) else error
        except Internal:  # grpc.aio's, instead of the status, if the server ends the call while a message is written
            return None
        raise AssertionError("it was taken for registering")

    async def registered() -> bool:
        try:
            return (await client.register(in_pieces(lines([entry("a/one")])))).registered == 1
        except InvalidRequest:
            return False

    for error in await asyncio.gather(*[until(refused) for _ in range(STREAMS)]):
        assert "has sent less than 32 bytes a second for 0.2 s; send it all again" in str(error)
    await until(registered)


async def test_a_stream_that_is_cancelled_as_a_message_arrives_ends() -> None:
    """Before Python 3.12, asyncio.wait_for can swallow the cancellation."""

    async def sent() -> AsyncIterator[RegisterRequest]:
        while True:
            await asyncio.sleep(0)
            yield RegisterRequest()

    async def register() -> None:
        requests, pace = sent(), Pace(60.0)
        while await _next(requests, pace):
            pass

    for steps in range(30):
        registering = asyncio.create_task(register())
        for _ in range(steps):
            await asyncio.sleep(0)
        registering.cancel()
        await asyncio.wait([registering])
        assert registering.cancelled(), f"went on after a cancellation at step {steps}"


async def test_clients_with_one_key_leave_a_place_to_others(tenants: Tenants) -> None:
    held, acme = asyncio.Event(), tenants.clients["acme"]
    registering = [asyncio.create_task(holding(acme, SHARED, held)) for _ in range(OF_ONE_KEY)]

    async def refused() -> bool:
        try:
            await acme.register(stream(RegisterRequest(base_model=SHARED)))
        except Overloaded as error:
            return f"{OF_ONE_KEY} streams with your key are registering" in str(error)
        return False

    await until(refused)
    request = RegisterRequest(base_model=SHARED, lines=lines([entry("rival/new")]))
    assert (await tenants.clients["rival"].register(stream(request))).registered == 1
    held.set()
    await asyncio.gather(*registering)


async def test_a_base_without_a_catalog_says_how_to_get_one(scene: Scene) -> None:
    await scene.base()
    await scene.begin()
    with pytest.raises(CatalogNotFound, match=r"spec\.catalog\.manifests\.uri"):
        await scene.client.catalog_page(BASE)


async def test_invalid_page_requests_are_refused(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    with pytest.raises(InvalidRequest, match="page_size: is -1; give 1 to 1000, or 0 for 100"):
        await client.catalog_page(BASE, size=-1)
    with pytest.raises(InvalidRequest, match="label"):
        await client.catalog_page(BASE, labels={"a b": "c"})
    with pytest.raises(InvalidRequest, match="names"):
        await client.retire([])


async def test_nothing_is_registered_in_manifests_that_are_no_longer_the_catalogs(
    redis_client: Redis, tmp_path: Path
) -> None:
    old, new, writer = f"file://{tmp_path}/old", f"file://{tmp_path}/new", CatalogWriter(redis_client)
    await Keeper(redis_client, dict).look(BASE, Source(old))
    begun = Registration(BASE, Parts(Source(old)), writer, stored=False)
    await begun.add([entry("a/before")])
    await begun.finish()
    first = await writer.sequences(BASE, 1, manifests=old)
    await Keeper(redis_client, dict).look(BASE, Source(new))
    await begun.add([entry("a/after")])
    with pytest.raises(MapUnavailable):
        await begun.finish()
    with pytest.raises(MapUnavailable):
        await writer.apply(BASE, [(first, entry("a/after"))], part_name(first, 1), manifests=old)
    assert await CatalogReader(redis_client).find(BASE, "a/after") is None


async def test_where_redis_is_full_registering_is_refused_and_retiring_is_not(scene: Scene, local: str) -> None:
    client = await opened(scene, local)
    await client.register(in_pieces(lines([entry("a/one"), entry("a/two")])))
    async with full_memory(scene.redis):
        with pytest.raises(CapacityExceeded, match="retire adapters, or raise its maxmemory"):
            await client.register(in_pieces(lines([entry("a/three")])))
        await client.retire(["a/one", "a/never"])
        assert (await listed(client)).keys() == {"a/two"}
    await scene.redis.flushall()  # the manifests say the same
    await declare(scene.redis, local)
    await complete(scene.redis)
    assert (await listed(client)).keys() == {"a/two"}


async def test_folders_that_hang_keep_no_other_base_from_registering(
    scene: Scene, local: str, tmp_path: Path
) -> None:
    bases = [f"demo/hung-{number}" for number in range(9)]  # together they read more parts than a pool has threads
    parts = [await written(tmp_path / base, "a/1", "a/2", "a/3", "a/4") for base in bases]
    with hanging(*itertools.chain(*parts)):
        for base in bases:
            await declare(scene.redis, f"file://{tmp_path / base}", base)
        await scene.open()
        for base in bases:
            await until(partial(scene.redis.exists, keys.catalog(base, "keeper")))
        await declare(scene.redis, local)
        await until(lambda: BASE in scene.gateway.mirror.views and scene.gateway.mirror.views[BASE].record)
        response = await scene.client.register(in_pieces(lines([entry("a/one")])))
    assert response.registered == 1


async def test_a_stream_that_breaks_leaves_the_gateway_as_it_was(scene: Scene, local: str) -> None:
    """Once the gateway has noticed it, which takes a moment."""
    client = await opened(scene, local)

    async def breaking() -> AsyncIterator[RegisterRequest]:
        yield RegisterRequest(base_model=BASE, lines=lines(many(100)))
        raise RuntimeError("the client ended")

    async def broken() -> bool:
        with pytest.raises((grpc.aio.AioRpcError, RuntimeError, asyncio.CancelledError, Overloaded)) as error:
            await client.register(breaking())
        return error.type is not Overloaded

    async def registered() -> RegisterResponse | None:
        with suppress(Overloaded):
            return await client.register(in_pieces(lines(many(100))))
        return None

    for _ in range(6):  # more often than the limit of open streams
        await until(broken)
    response = await until(registered)
    assert response.registered == 100
