"""Many small parts of a catalog become few, and the catalog stays what it is, whatever happens in between."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.catalog_parts import Parts, count_of, part_name
from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.entries import Entry
from mint_contracts.source import Source
from mint_gateway.catalog.compaction import ENOUGH, MERGED_ENTRIES, SMALL, chosen
from mint_gateway.catalog.keeper import Keeper

BASE = "demo/smollm2"


@pytest.fixture
def manifests(tmp_path: Path) -> Source:
    return Source(f"file://{tmp_path}/catalog")


def entry(name: str, revision: str) -> Entry:
    return Entry(name, f"s3://adapters/{name}/{revision}", revision)


async def written(manifests: Source, count: int, first: int = 1) -> list[str]:
    """Parts of two entries each: a name of its own, and a new revision of one that all tell of; one retires."""
    parts, names = Parts(manifests), []
    for number in range(first, first + count):
        shared = Entry("a/shared", retired=True) if number == first + count // 2 else entry("a/shared", f"r{number}")
        names.append(part_name(number * 10, 2))
        await parts.write(names[-1], [entry(f"a/own-{number:04d}", "r1"), shared])
    return names


async def read_anew(redis: Redis, manifests: Source) -> list[Entry]:
    """What the manifests say, read into an empty Redis, with the pinned revisions of the name that has many."""
    await redis.flushall()
    await Keeper(redis, dict).rebuild(BASE, manifests)
    reader = CatalogReader(redis)
    pinned = [await reader.find(BASE, "a/shared", f"r{number}") for number in range(1, 200)]
    return [*await reader.all(BASE, limit=10_000), *[each for each in pinned if each is not None]]


async def swept(redis: Redis, manifests: Source) -> list[str]:
    """The names of the parts after a sweep."""
    await Keeper(redis, dict).sweep(BASE, manifests)
    return await Parts(manifests).names()


async def test_many_small_parts_become_one_that_says_the_same(redis_client: Redis, manifests: Source) -> None:
    await written(manifests, 100)
    before = await read_anew(redis_client, manifests)
    names = await swept(redis_client, manifests)
    assert [count_of(name) for name in names] == [200]
    assert await read_anew(redis_client, manifests) == before
    assert len(before) > 100


async def test_a_merged_part_is_merged_again_with_those_that_come_later(
    redis_client: Redis, manifests: Source
) -> None:
    await written(manifests, 100)
    await read_anew(redis_client, manifests)
    await swept(redis_client, manifests)
    await written(manifests, 99, first=101)
    before = await read_anew(redis_client, manifests)
    assert [count_of(name) for name in await swept(redis_client, manifests)] == [398]
    assert await read_anew(redis_client, manifests) == before


async def test_few_parts_stay_as_they_are(redis_client: Redis, manifests: Source) -> None:
    names = await written(manifests, ENOUGH - 1)
    await read_anew(redis_client, manifests)
    assert await swept(redis_client, manifests) == names


async def test_a_compaction_that_ended_before_it_had_deleted_is_gone_on_with(
    redis_client: Redis, manifests: Source, tmp_path: Path
) -> None:
    names = await written(manifests, 100)
    kept = {name: (tmp_path / "catalog" / name).read_bytes() for name in names}
    before = await read_anew(redis_client, manifests)
    await swept(redis_client, manifests)
    for name in names[30:]:  # as if it had deleted only the first
        (tmp_path / "catalog" / name).write_bytes(kept[name])
    assert await read_anew(redis_client, manifests) == before
    assert [count_of(name) for name in await swept(redis_client, manifests)] == [200]
    assert await read_anew(redis_client, manifests) == before


async def test_a_part_with_a_line_that_cannot_be_read_is_left_for_a_person(
    redis_client: Redis, manifests: Source, tmp_path: Path
) -> None:
    names = await written(manifests, 100)
    torn = tmp_path / "catalog" / names[7]
    torn.write_bytes(torn.read_bytes() + b"{torn\n")
    await read_anew(redis_client, manifests)
    assert names[7] in await swept(redis_client, manifests)
    assert torn.read_bytes().endswith(b"{torn\n")


async def test_parts_that_may_still_be_on_their_way_are_left_alone(redis_client: Redis, manifests: Source) -> None:
    await written(manifests, 100)
    young = part_name(10**16 - 1, 1)
    await Parts(manifests).write(young, [entry("a/young", "r1")])
    await read_anew(redis_client, manifests)
    assert young in await swept(redis_client, manifests)
    assert await redis_client.hget(keys.catalog(BASE), "count") == "102"


def test_parts_are_merged_up_to_a_size_and_large_ones_never() -> None:
    small = [part_name(number, SMALL - 1) for number in range(1, ENOUGH + 1)]
    large, old = part_name(500, SMALL), "0000000000000600-abcdef01.jsonl"
    groups = chosen([*small, large, old], floor=1000)
    assert [name for group in groups for name in group] == small
    assert all(sum(count_of(name) or 0 for name in group) <= MERGED_ENTRIES for group in groups)
    assert chosen(small, floor=ENOUGH - 1) == []
