"""Catalogs for the gateway's tests: entries to register, and their manifest files."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.catalog_parts import Parts
from mint_contracts.catalog_pb2 import CatalogEntry, RegisterRequest
from mint_contracts.entries import Entry
from mint_contracts.map_writer import MapWriter
from mint_contracts.part_names import part_name
from mint_contracts.records import BaseRecord, MapChange
from mint_contracts.source import Source
from mint_gateway.client import Client
from mint_gateway.server import Limits
from tests.contracts.catalogs import entry
from tests.gateway.scene import BASE, LIMITS, Scene, complete
from tests.waiting import until

COUNT = 2500


def many(count: int = COUNT) -> list[Entry]:
    return [entry(f"team-{n % 5}/bot-{n:05d}", "r1", tier=("gold", "free")[n % 2]) for n in range(count)]


def lines(entries: list[Entry]) -> bytes:
    return b"".join(msgspec.json.encode(each) + b"\n" for each in entries)


async def opened(scene: Scene, manifests: str, limits: Limits = LIMITS) -> Client:
    """Open a gateway over a base with a complete catalog; return its client."""
    await declare(scene.redis, manifests)
    await scene.open(limits)
    await complete(scene.redis)
    await until(lambda: BASE in scene.gateway.mirror.views and scene.gateway.mirror.views[BASE].record)
    return scene.client


async def declare(redis: Redis, manifests: str, base: str = BASE, store: Source | None = None) -> None:
    record = BaseRecord(base_model=base, catalog=Source(manifests), store=store)
    await MapWriter(redis, epoch=1).apply(base, MapChange(base=record))


async def followed(redis: Redis, base: str = BASE) -> None:
    """Wait until a gateway is subscribed to changes in a base's catalog."""

    async def look() -> bool:
        [(_, count)] = await redis.pubsub_numsub(keys.catalog(base, "news"))
        return bool(count)

    await until(look)


async def in_pieces(text: bytes, size: int = 60_000) -> AsyncIterator[RegisterRequest]:
    """Yield messages of complete lines, about `size` bytes each."""
    pending = b""
    for line in text.splitlines(keepends=True):
        pending += line
        if len(pending) >= size:
            yield RegisterRequest(base_model=BASE, lines=pending)
            pending = b""
    yield RegisterRequest(base_model=BASE, lines=pending)


async def written(folder: Path, *names: str, sequence: int = 1000) -> list[Path]:
    """Write one manifest part for each name; return their files."""
    parts = [part_name(sequence + number, 1) for number in range(len(names))]
    for part, name in zip(parts, names, strict=True):
        await Parts(Source(f"file://{folder}")).write(part, [entry(name)])
    return [folder / part for part in parts]


@contextmanager
def hanging(*parts: Path) -> Iterator[Callable[[], None]]:
    """Make reads of files hang until the yielded function is called, or the block ends."""
    waiting = [(part, part.read_bytes()) for part in parts]
    for part in parts:
        part.unlink()
        os.mkfifo(part)

    def go_on() -> None:
        while waiting:
            part, content = waiting.pop()
            pipe = os.open(part, os.O_RDWR)  # for readers that already wait; later ones get the file
            os.write(pipe, content)
            whole = part.with_name(f".{part.name}")
            whole.write_bytes(content)
            os.replace(whole, part)
            os.close(pipe)

    try:
        yield go_on
    finally:
        go_on()


async def listed(client: Client) -> dict[str, CatalogEntry]:
    """Return all of the catalog's entries by name, fetched page by page."""
    found: dict[str, CatalogEntry] = {}
    token = ""
    while True:
        page = await client.catalog_page(BASE, size=1000, token=token)
        found |= {each.name: each for each in page.entries}
        token = page.next_page_token
        if not token:
            return found
