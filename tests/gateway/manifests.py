"""A catalog's manifests as tests write, sweep and read them."""

from redis.asyncio import Redis

from mint_contracts.catalog_parts import Parts
from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.entries import Entry
from mint_contracts.part_names import part_name
from mint_contracts.source import Source
from mint_gateway.catalog.keeper import Keeper

BASE = "demo/smollm2"


def entry(name: str, revision: str) -> Entry:
    return Entry(name, f"s3://adapters/{name}/{revision}", revision)


async def written(manifests: Source, count: int, first: int = 1) -> list[str]:
    """Write parts of two entries each: an own name, and a new revision of a shared one, which one part retires."""
    parts, names = Parts(manifests), []
    for number in range(first, first + count):
        shared = Entry("a/shared", retired=True) if number == first + count // 2 else entry("a/shared", f"r{number}")
        names.append(part_name(number * 10, 2))
        await parts.write(names[-1], [entry(f"a/own-{number:04d}", "r1"), shared])
    return names


async def read_anew(redis: Redis, manifests: Source) -> list[Entry]:
    """Read the manifests into an empty Redis; return all entries, and the shared name's pinned revisions."""
    await redis.flushall()
    await Keeper(redis, dict).rebuild(BASE, manifests)
    reader = CatalogReader(redis)
    pinned = [await reader.find(BASE, "a/shared", f"r{number}") for number in range(1, 200)]
    return [*await reader.all(BASE, limit=10_000), *[each for each in pinned if each is not None]]


async def swept(redis: Redis, manifests: Source, *, stored: bool = True) -> list[str]:
    """Sweep, and return the names of the parts afterwards."""
    await Keeper(redis, dict, lambda base: stored).sweep(BASE, manifests)
    return await Parts(manifests).names()
