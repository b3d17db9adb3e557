"""The catalog of a stage's base, waves over it and over manifests, and helpers that wait for their effects."""

import io
from typing import Any

import msgspec
import pyarrow as pa
from pyarrow import parquet

from mint_contracts.catalog_writer import CatalogWriter
from mint_contracts.entries import Entry
from mint_contracts.map_reader import MapReader
from mint_contracts.records import Mentions
from mint_operator.observing.dirt import Part
from tests.operator.stage import Stage, adapter_wave, until

CATALOG: dict[str, Any] = {"catalog": {"manifests": {"uri": "s3://catalog/smol"}}}
SUPPORT = [f"acme/support-{n}" for n in range(3)]
RETIRED = "was retired from the catalog"


def entry(name: str, revision: str = "1", **labels: str) -> Entry:
    return Entry(name, f"s3://adapters/{name}/{revision}", revision, labels)


def over(name: str, **adapters: Any) -> dict[str, Any]:
    """Return a wave with the given `spec.adapters`."""
    return adapter_wave(name, []) | {"spec": {"baseModelRef": {"name": "smol"}, "adapters": adapters}}


class Catalog:
    """The catalog of the stage's base, written as a gateway writes it."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._writer, self._sequence, self._copy = stage, CatalogWriter(stage.redis), 0, ""

    async def register(self, *entries: Entry) -> None:
        rows = list(enumerate(entries, self._sequence + 1))
        self._sequence += len(entries)
        self._copy = self._copy or await self._writer.begin(self._stage.base, "s3://catalog/smol")
        await self._writer.apply(self._stage.base, rows, f"part-{self._sequence}")
        await self._writer.complete(self._stage.base, self._copy, self._sequence)

    async def retire(self, *names: str) -> None:
        await self.register(*[Entry(name, retired=True) for name in names])


async def sources(stage: Stage) -> dict[str, str]:
    """Return the source URI of each placed adapter, according to the map."""
    placed = await MapReader(stage.redis).placements(stage.base)
    return {name: each.source.uri for name, each in sorted(placed.items())}


async def becomes(stage: Stage, expected: list[str]) -> dict[str, str]:
    """Run passes until exactly these adapters are placed; return their sources."""

    async def probe() -> bool:
        await stage.once(frozenset({Part.MAP}))
        return list(await sources(stage)) == expected

    await until(f"placements of {expected}", probe)
    return await sources(stage)


async def says(stage: Stage, wave: str, reason: str) -> str:
    """Run passes until the wave is refused for `reason`; return the message."""

    async def probe() -> str:
        await stage.once(frozenset({Part.MAP}))
        found = await stage.condition("AdapterWave", wave, "Admitted")
        return str(found["message"]) if found.get("reason") == reason else ""

    return await until(f"{wave}: {reason}", probe)


async def mentions(stage: Stage, *waves: str) -> list[Mentions | None]:
    """Return whom each wave's message names, according to the map."""
    records = await MapReader(stage.redis).waves(stage.base)
    return [records[f"{stage.namespace}/{wave}"].mentions for wave in waves]


def table(*entries: Entry) -> bytes:
    """Return the entries as a Parquet file."""
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([msgspec.to_builtins(each) for each in entries]), file)
    return file.getvalue()


def columns(**beside: pa.Array) -> bytes:
    """Return a Parquet file of one entry, with these columns in addition to its name and uri."""
    file = io.BytesIO()
    parquet.write_table(pa.table({"name": ["x/1"], "uri": ["s3://b/x"], **beside}), file)
    return file.getvalue()


def twice() -> bytes:
    """Return a Parquet file with a label that has two values, which no dictionary can hold."""
    return columns(labels=pa.array([[("team", "a"), ("team", "b")]], pa.map_(pa.string(), pa.string())))
