"""The catalog at 10^6 adapters: bytes per adapter in Redis, and speed of registering, restoring and finding them.

Ours is a gateway's complete path: a stream of JSON lines over gRPC, checked, written to manifests in a folder with
fsync, then to Redis. Its peer is what a script would do with the same lines: HSET name line, a thousand per pipeline.
"""

import asyncio
import gc
import hashlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import redis as redis_py
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.catalog_pb2 import RegisterRequest
from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.functions import connect
from mint_gateway.catalog.resolver import Resolver
from mint_gateway.client import Client
from tests.bench.places import scratch
from tests.bench.rows import Row, measured, percentile
from tests.bench.scale.gateway import BASE, declare, gateway
from tests.bench.scale.scale import Group, Scale
from tests.waiting import until

COUNT = 1_000_000
LINES_A_MESSAGE = 1000
PIPELINE = 1000
ASKED = 20_000  # names per round and side
DONE_S = 600.0
TEAMS, TIERS = 50, ("gold", "silver", "free")

Line = tuple[str, bytes]


def lines(count: int) -> list[Line]:
    """Return names with their JSON lines in random order, as a fleet's own records would be."""
    numbers = list(range(count))
    random.Random(1).shuffle(numbers)
    return [(name(number), _line(number)) for number in numbers]


def name(number: int) -> str:
    """Return the name of the adapter with a number; adapters are spread over 5,000 tenants."""
    return f"tenant-{number % 5000:05d}/support-{number:07d}"


def _line(number: int) -> bytes:
    who, digest = name(number), hashlib.sha256(str(number).encode()).hexdigest()
    labels = f'{{"team":"t{number % TEAMS}","tier":"{TIERS[number % 3]}"}}'
    return (
        f'{{"name":"{who}","uri":"s3://adapters/prod/{who}","revision":"sha256:{digest}",'
        f'"labels":{labels},"rank":8,"bytes":{4_900_000 + number}}}\n'
    ).encode()


def _measure(scale: Scale) -> list[Row]:
    count = scale.size(COUNT)
    with scale.steps.step(f"{count:,} lines"):
        everything = lines(count)
        gc.freeze()  # these many objects must not slow either side's garbage collections
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(scale.rounds - 1):
        ours.append(asyncio.run(_registered(scale, everything)))
        theirs.append(_plain(scale, everything))
    theirs.append(_plain(scale, everything))
    with scratch("manifests") as folder, scale.redis() as server, gateway(server.url) as target:
        took, size, again, found, asked = asyncio.run(_whole(scale, everything, folder, server.url, target))
    ours.append(took)
    rates = [count / seconds for seconds in ours], [count / seconds for seconds in theirs]
    return [
        measured("scale.catalog_bytes_per_adapter", [size], note=f"{count:,} adapters, indexes included"),
        measured("scale.register_over_redis", *rates, note="over gRPC, with manifests on disk"),
        measured("scale.rebuild_1e6_s", [again], [took], note=f"{count:,} adapters"),
        measured("scale.resolve_p99_ms", found, asked, note=f"p99 of {ASKED:,}, Zipf over {count:,}"),
    ]


async def _whole(
    scale: Scale, everything: list[Line], folder: Path, url: str, target: str
) -> tuple[float, float, float, list[float], list[float]]:
    """Return seconds to register, bytes per adapter, seconds to reread all, and p99s of finds and GETs in ms."""
    redis = connect(url)
    try:
        await declare(redis, folder)
        await _complete(redis)
        before = await _used(redis)
        with scale.steps.step("ours: register") as step:
            took = await _register(everything, target)
            step.note = f"{len(everything) / took:,.0f}/s"
        size = (await _used(redis) - before) / len(everything)
        with scale.steps.step("ours: everything in Redis lost, read from the manifests"):
            await redis.flushall()
            began = time.perf_counter()
            await declare(redis, folder)
            await _complete(redis)
            again = time.perf_counter() - began
        assert int(await redis.hget(keys.catalog(BASE), "count") or 0) == len(everything)
        with scale.steps.step("names found, and plain round trips"):
            rounds = [await _asked(redis, len(everything), number) for number in range(scale.rounds + 1)][1:]
    finally:
        await redis.aclose()
    return took, size, again, [found for found, _ in rounds], [asked for _, asked in rounds]


async def _registered(scale: Scale, everything: list[Line]) -> float:
    with scratch("manifests") as folder, scale.redis() as server, gateway(server.url) as target:
        redis = connect(server.url)
        await declare(redis, folder)
        await _complete(redis)
        await redis.aclose()
        with scale.steps.step("ours: register") as step:
            took = await _register(everything, target)
            step.note = f"{len(everything) / took:,.0f}/s"
    return took


async def _register(everything: list[Line], target: str) -> float:
    async def requests() -> AsyncIterator[RegisterRequest]:
        for some in _batches(everything, LINES_A_MESSAGE):
            yield RegisterRequest(base_model=BASE, lines=b"".join(line for _, line in some))

    async with Client(target) as client:
        began = time.perf_counter()
        told = await client.register(requests(), timeout_s=DONE_S)
        took = time.perf_counter() - began
    assert (told.registered, told.refused) == (len(everything), 0)
    return took


def _plain(scale: Scale, everything: list[Line]) -> float:
    with scale.redis() as server, scale.steps.step("theirs: HSET, pipelined") as step:
        with redis_py.Redis.from_url(server.url) as client:
            began = time.perf_counter()
            for some in _batches(everything, PIPELINE):
                pipeline = client.pipeline(transaction=False)
                for who, line in some:
                    pipeline.hset("adapters", who, line)
                pipeline.execute()
            took = time.perf_counter() - began
        step.note = f"{len(everything) / took:,.0f}/s"
    return took


async def _asked(redis: Redis, count: int, seed: int) -> tuple[float, float]:
    """Return the p99, in ms, of finding names by a gateway's resolver, and of as many interleaved GETs."""
    drawn = _zipf(count, 3 * ASKED, seed)
    resolver = Resolver(CatalogReader(redis))
    for number in drawn[: 2 * ASKED]:
        await resolver.find(BASE, name(number))
    found, asked = [], []
    for number in drawn[2 * ASKED :]:
        who, began = name(number), time.perf_counter()
        entry = await resolver.find(BASE, who)
        between = time.perf_counter()
        await redis.get("nothing")
        asked.append(time.perf_counter() - between)
        found.append(between - began)
        assert entry is not None
    return percentile(found, 99) * 1000, percentile(asked, 99) * 1000


def _zipf(count: int, draws: int, seed: int) -> list[int]:
    """Draw ranks from 0; the n-th has a probability proportional to 1/n."""
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(count)))
    return random.Random(seed).choices(range(count), cum_weights=weights, k=draws)


async def _complete(redis: Redis) -> None:
    async def look() -> bool:
        return await redis.hget(keys.catalog(BASE), "complete") == "1"

    await until(look, timeout_s=DONE_S)


async def _used(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory"])


def _batches(everything: list[Line], size: int) -> Iterator[list[Line]]:
    for at in range(0, len(everything), size):
        yield everything[at : at + size]


GROUPS = (
    Group(
        (
            "scale.catalog_bytes_per_adapter",
            "scale.register_over_redis",
            "scale.rebuild_1e6_s",
            "scale.resolve_p99_ms",
        ),
        _measure,
    ),
)
