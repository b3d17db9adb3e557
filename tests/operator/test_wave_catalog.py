"""Waves over the catalog and over manifests: a real API server, a real Redis, and manifests served over HTTP."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.catalog_writer import CatalogWriter
from mint_contracts.entries import Entry
from mint_contracts.errors import CapacityExceeded, CorruptFile, InvalidRequest
from mint_contracts.map_reader import MapReader
from mint_operator.observing import wave_lists
from mint_operator.observing.dirt import Part
from mint_operator.observing.wave_lists import Lists
from mint_operator.observing.wave_manifest import entries
from mint_operator.planning.lookup import MOST_ADAPTERS, Lookup
from tests.operator.stage import Stage, adapter_wave, base_model, until

CATALOG: dict[str, Any] = {"catalog": {"manifests": {"uri": "s3://catalog/smol"}}}


def entry(name: str, revision: str = "1", **labels: str) -> Entry:
    return Entry(name, f"s3://adapters/{name}/{revision}", revision, labels)


def over(name: str, **adapters: Any) -> dict[str, Any]:
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


@pytest.fixture
async def catalog(stage: Stage) -> Catalog:
    found = Catalog(stage)
    await found.register(
        *[entry(f"acme/support-{n}", team="support") for n in range(3)], entry("acme/law-1", team="law"), entry("b/c")
    )
    return found


async def sources(stage: Stage) -> dict[str, str]:
    """Where the map says that each placed adapter is fetched from."""
    placed = await MapReader(stage.redis).placements(stage.base)
    return {name: each.source.uri for name, each in sorted(placed.items())}


async def becomes(stage: Stage, expected: list[str]) -> dict[str, str]:
    """Passes until exactly these adapters are placed."""

    async def probe() -> bool:
        await stage.once(frozenset({Part.MAP}))
        return list(await sources(stage)) == expected

    await until(f"placements of {expected}", probe, timeout_s=30)
    return await sources(stage)


async def says(stage: Stage, wave: str, reason: str) -> str:
    """Passes until the wave is refused for that reason; its message."""

    async def probe() -> str:
        await stage.once(frozenset({Part.MAP}))
        found = await stage.condition("AdapterWave", wave, "Admitted")
        return str(found["message"]) if found.get("reason") == reason else ""

    return await until(f"{wave}: {reason}", probe, timeout_s=30)


SUPPORT = [f"acme/support-{n}" for n in range(3)]


async def test_a_selector_takes_what_begins_so_and_has_the_labels(stage: Stage, catalog: Catalog) -> None:
    stage.apply(base_model(**CATALOG), over("all", selector={"prefix": "acme/", "labels": {"team": "support"}}))
    await stage.once()
    found = await becomes(stage, SUPPORT)
    assert found["acme/support-0"] == "s3://adapters/acme/support-0/1"
    await stage.engine().obey()
    await stage.once(frozenset({Part.MAP}))
    status = await stage.status("AdapterWave", "all")
    assert (status["phase"], status["summary"]) == ("Ready", "3/3")


async def test_a_wave_follows_what_is_registered_retired_and_revised(stage: Stage, catalog: Catalog) -> None:
    stage.apply(base_model(**CATALOG), over("all", selector={"prefix": "acme/support-"}))
    await stage.once()
    await becomes(stage, SUPPORT)
    await catalog.register(entry("acme/support-3"))
    await becomes(stage, [*SUPPORT, "acme/support-3"])
    await catalog.retire(*SUPPORT[:2])
    await becomes(stage, ["acme/support-2", "acme/support-3"])
    await catalog.register(entry("acme/support-2", "2"))

    async def revised() -> bool:
        await stage.once(frozenset({Part.MAP}))
        return (await sources(stage))["acme/support-2"].endswith("/2")

    await until("the new revision", revised, timeout_s=30)


async def test_waves_that_share_an_adapter_move_to_its_new_revision_together(stage: Stage, catalog: Catalog) -> None:
    waves = [
        over(f"w{n}", selector={"prefix": prefix}) for n, prefix in enumerate(["acme/", "acme/s", "acme/support"])
    ]
    stage.apply(base_model(**CATALOG), *waves)
    await stage.once()
    await becomes(stage, ["acme/law-1", *SUPPORT])
    await catalog.register(*[entry(name, "2") for name in SUPPORT])

    async def moved() -> bool:
        await stage.once(frozenset({Part.MAP}))
        for each in range(3):
            admitted = await stage.condition("AdapterWave", f"w{each}", "Admitted")
            assert admitted["status"] == "True", admitted
        return all(uri.endswith("/2") for name, uri in (await sources(stage)).items() if name in SUPPORT)

    await until("all on the new revision", moved, timeout_s=30)


async def test_names_of_a_base_without_store_are_the_catalogs_and_pins_hold_still(
    stage: Stage, catalog: Catalog
) -> None:
    await catalog.register(entry("acme/law-1", "2"))
    base = base_model(adapters={"deviceSlots": 8}, **CATALOG)
    stage.apply(base, over("named", names=["acme/law-1", "acme/law-1@1", "b/c"]))
    await stage.once()
    found = await becomes(stage, ["acme/law-1", "acme/law-1@1", "b/c"])
    assert [uri[-1] for uri in found.values()] == ["2", "1", "1"]


async def test_names_are_the_catalogs_and_those_that_it_does_not_know_the_stores(
    stage: Stage, catalog: Catalog
) -> None:
    stage.apply(base_model(**CATALOG), over("named", names=["acme/law-1", "acme/law-1@1", "in/store"]))
    await stage.once()
    found = await becomes(stage, ["acme/law-1", "acme/law-1@1", "in/store"])
    law = "s3://adapters/acme/law-1/1"
    assert list(found.values()) == [law, law, "pvc://samples/adapters/in/store"]


RETIRED = "was retired from the catalog"


async def test_a_wave_that_names_what_was_retired_is_refused_though_the_store_may_have_it(
    stage: Stage, catalog: Catalog, shelf: tuple[Path, str]
) -> None:
    folder, url = shelf
    (folder / "wave.jsonl").write_bytes(msgspec.json.Encoder().encode_lines([Entry("in/store"), Entry("b/c")]))
    await catalog.retire("in/store")
    stage.apply(
        base_model(**CATALOG),
        over("named", names=["b/c", "in/store"]),
        over("pinned", names=["in/store@1"]),
        over("filed", manifest=f"{url}/wave.jsonl"),
    )
    await stage.once()
    for wave in ("named", "pinned", "filed"):
        said = await says(stage, wave, "AdapterNotFound")
        assert f"{RETIRED} of {stage.base}" in said
        assert "leave it out of the wave" in said
    await catalog.register(entry("in/store", "1"))
    await becomes(stage, ["b/c", "in/store", "in/store@1"])


async def test_a_wave_that_is_served_goes_on_without_what_is_retired(stage: Stage, catalog: Catalog) -> None:
    stage.apply(base_model(**CATALOG), over("named", names=["acme/law-1", "in/store"]))
    await stage.once()
    await becomes(stage, ["acme/law-1", "in/store"])
    await catalog.retire("in/store")
    await becomes(stage, ["acme/law-1"])

    async def told() -> bool:
        await stage.once(frozenset({Part.MAP}))
        return RETIRED in (await stage.condition("AdapterWave", "named", "Admitted"))["message"]

    await until("the status to tell", told, timeout_s=30)
    await catalog.retire("acme/law-1")
    assert RETIRED in await says(stage, "named", "AdapterNotFound")
    await becomes(stage, [])
    await catalog.register(entry("in/store"), entry("acme/law-1"))
    assert (await becomes(stage, ["acme/law-1", "in/store"]))["in/store"] == "s3://adapters/in/store/1"


async def test_an_operator_that_was_away_when_a_name_was_retired_takes_it_out_alone(
    stage: Stage, catalog: Catalog
) -> None:
    stage.apply(base_model(**CATALOG), over("named", names=["acme/law-1", "in/store"]))
    await stage.once()
    await becomes(stage, ["acme/law-1", "in/store"])
    await catalog.retire("in/store")
    stage.operator(2)
    await stage.once()
    await becomes(stage, ["acme/law-1"])


async def test_an_operator_that_begins_goes_on_with_what_is_left_of_a_wave(stage: Stage, catalog: Catalog) -> None:
    stage.apply(base_model(**CATALOG), over("named", names=["acme/law-1", "in/store"]))
    await stage.once()
    await becomes(stage, ["acme/law-1", "in/store"])
    await catalog.retire("in/store")
    await becomes(stage, ["acme/law-1"])
    stage.operator(2)

    async def told() -> bool:
        await stage.once()
        assert list(await sources(stage)) == ["acme/law-1"]
        return RETIRED in (await stage.condition("AdapterWave", "named", "Admitted"))["message"]

    await until("the status to tell", told, timeout_s=30)


async def test_a_wave_that_gets_another_name_keeps_what_it_has_until_that_is_looked_up(
    stage: Stage, catalog: Catalog
) -> None:
    stage.apply(base_model(**CATALOG), over("named", names=["acme/law-1"]))
    await stage.once()
    await becomes(stage, ["acme/law-1"])
    stage.apply(over("named", names=["acme/law-1", "b/c"]))
    await stage.once()
    assert "acme/law-1" in await sources(stage)
    await becomes(stage, ["acme/law-1", "b/c"])


async def test_what_was_retired_stays_out_where_another_name_is_unknown_or_nothing_can_be_read(
    stage: Stage, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wave_lists, "LONGEST_RETRY_S", 0.0)
    lists = Lists(CatalogReader(stage.redis), lambda: None, look_s=0.0)
    asked = Lookup(stage.base, names=("acme/law-1", "acme/support-1", "b/c"), catalog=True)

    async def answers(reason: str) -> tuple[list[str], frozenset[str]]:
        async def probe() -> bool:
            await lists.refresh([asked])
            found = lists.found.get(asked)
            return found is not None and (found.failure.reason if found.failure else "") == reason

        await until(f"the answer {reason!r}", probe, timeout_s=30)
        return [each.name for each in lists.found[asked].listed or ()], lists.found[asked].gone

    assert await answers("") == (list(asked.names), frozenset())
    await stage.redis.delete(*[key async for key in stage.redis.scan_iter(match="*:catalog*")])
    assert await answers("MapUnavailable") == (list(asked.names), frozenset())
    await Catalog(stage).register(entry("acme/law-1"), Entry("b/c", retired=True))
    left = await answers("AdapterNotFound")
    assert left == (["acme/law-1", "acme/support-1"], frozenset({"b/c"}))
    await stage.redis.delete(*[key async for key in stage.redis.scan_iter(match="*:catalog*")])
    assert await answers("MapUnavailable") == left


async def test_what_is_wrong_is_a_condition_that_says_what_to_do(
    stage: Stage, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wave_lists, "MOST_ADAPTERS", 2)
    away = "http://127.0.0.1:9/none.jsonl"
    stage.apply(
        base_model(**CATALOG),
        over("none", selector={"prefix": "nobody/"}),
        over("many", selector={"prefix": "acme/"}),
        over("pin", names=["acme/law-1@7"]),
        over("away", manifest=away),
    )
    await stage.once()
    assert "register some, or change the selector" in await says(stage, "none", "NoMatch")
    assert "narrow it" in await says(stage, "many", "TooManyAdapters")
    assert "'acme/law-1@7'" in await says(stage, "pin", "AdapterNotFound")
    assert away in await says(stage, "away", "SourceUnavailable")
    await catalog.register(entry("nobody/1"), entry("acme/law-1", "7"))
    await becomes(stage, ["acme/law-1@7", "nobody/1"])


async def test_without_a_catalog_a_selector_says_which_field_to_set(stage: Stage) -> None:
    stage.apply(base_model(), over("all", selector={"prefix": "acme/"}), over("pin", names=["acme/law-1@7"]))
    await stage.once()
    for wave in ("all", "pin"):
        assert "spec.catalog.manifests.uri" in await says(stage, wave, "NoCatalog")
        assert (await stage.status("AdapterWave", wave))["phase"] == "Failed"


async def test_an_operator_that_begins_while_the_catalog_is_rebuilt_lets_go_of_nothing(
    stage: Stage, catalog: Catalog
) -> None:
    stage.apply(base_model(**CATALOG), over("all", selector={"prefix": "acme/support-"}))
    await stage.once()
    await becomes(stage, SUPPORT)
    gone = [key async for key in stage.redis.scan_iter(match="*:catalog*")]
    await stage.redis.delete(*gone)
    stage.operator(2)
    for _ in range(3):
        await stage.once()
        assert list(await sources(stage)) == SUPPORT
    admitted = await stage.condition("AdapterWave", "all", "Admitted")
    assert admitted["status"] == "True"
    await Catalog(stage).register(entry("acme/support-9"))
    await becomes(stage, ["acme/support-9"])


async def test_a_manifest_is_a_wave_and_is_followed(
    stage: Stage, catalog: Catalog, shelf: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wave_lists, "REREAD_S", 0.0)
    monkeypatch.setattr(wave_lists, "LONGEST_RETRY_S", 0.0)
    folder, url = shelf
    lines = [entry("x/1"), entry("x/2"), Entry("acme/law-1", revision="1"), Entry("in/store")]
    (folder / "wave.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(lines))
    stage.apply(base_model(**CATALOG), over("filed", manifest=f"{url}/wave.jsonl"))
    await stage.once()
    found = await becomes(stage, ["acme/law-1@1", "in/store", "x/1", "x/2"])
    assert found["in/store"] == "pvc://samples/adapters/in/store"
    (folder / "wave.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(lines[1:2]))
    await becomes(stage, ["x/2"])
    (folder / "wave.jsonl").write_bytes(b"nonsense")

    async def told() -> bool:
        await stage.once()
        return "line 1 is no entry" in (await stage.condition("AdapterWave", "filed", "Admitted"))["message"]

    await until("the status to tell", told, timeout_s=30)
    assert list(await sources(stage)) == ["x/2"], "what was read before stands"


def table(*entries: Entry) -> bytes:
    """The entries as a Parquet file."""
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([msgspec.to_builtins(each) for each in entries]), file)
    return file.getvalue()


def test_parquet_says_the_same_as_lines() -> None:
    given = [entry("a/1", team="x"), entry("a/2", size="y")]
    assert entries("s3://b/w.parquet", table(*given)) == given
    assert entries("s3://b/w.jsonl", msgspec.json.Encoder().encode_lines(given)) == given


@pytest.mark.parametrize(
    ("make", "error", "why"),
    [
        (lambda: b"", InvalidRequest, "has no adapters"),
        (lambda: b'{"name": "a", "uri": "s3://b/a"}\n{"nom": "b"}', InvalidRequest, "line 2 is no entry"),
        (lambda: b'\n{"name": "../a", "uri": "s3://b/a"}', InvalidRequest, "line 2: adapter"),
        (lambda: b'{"name": "a", "retired": true}', InvalidRequest, "leave it out"),
        (lambda: b'{"name": "caf\xe9", "uri": "s3://b/a"}', InvalidRequest, "line 1 is no entry"),
        (lambda: b'{"name": "a"}\n' * (MOST_ADAPTERS + 1), InvalidRequest, "make several waves"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_naming_the_line(
    make: Callable[[], bytes], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        entries("s3://b/w.jsonl", make())


def test_what_is_no_parquet_is_refused() -> None:
    with pytest.raises(CorruptFile, match="is no Parquet file"):
        entries("s3://b/w.parquet", b"PAR1 and nothing else")


def columns(**beside: pa.Array) -> bytes:
    """A Parquet file of one entry, with these columns beside its name and uri."""
    file = io.BytesIO()
    parquet.write_table(pa.table({"name": ["x/1"], "uri": ["s3://b/x"], **beside}), file)
    return file.getvalue()


def twice() -> bytes:
    return columns(labels=pa.array([[("team", "a"), ("team", "b")]], pa.map_(pa.string(), pa.string())))


def garbled() -> bytes:
    data = bytearray(table(*[entry(f"a/{n}") for n in range(100)]))
    data[4:40] = b"\xff" * 36  # the first page's header
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (twice, "duplicate keys"),
        (lambda: columns(made=pa.array([1], pa.timestamp("ns"))), "values that no line of JSON can have"),
        (lambda: columns(made=pa.array([2**62], pa.timestamp("us"))), "values that no line of JSON can have"),
        (lambda: columns(revision=pa.array([b"\xff"]).view(pa.string())), "codec can't decode"),
        (garbled, "is no Parquet file"),
    ],
    ids=["a key twice", "nanoseconds", "the year 146000", "no text", "garbled"],
)
def test_parquet_that_python_cannot_hold_is_refused(make: Callable[[], bytes], why: str) -> None:
    with pytest.raises(CorruptFile, match=why):
        entries("s3://b/w.parquet", make())


def test_parquet_that_unpacks_to_more_than_is_allowed_is_refused_before_it_does() -> None:
    most = columns(note=pa.array(["x" * (17 << 20)]))
    assert len(most) < 1 << 20
    with pytest.raises(CapacityExceeded, match="a row of more than 16 MiB"):
        entries("s3://b/w.parquet", most)
    with pytest.raises(CapacityExceeded, match="unpacks to more than 64 MiB"):
        entries("s3://b/w.parquet", columns(note=pa.array(["x" * (65 << 20)])))


async def test_a_manifest_that_cannot_be_read_is_its_own_waves_trouble_alone(
    stage: Stage, catalog: Catalog, shelf: tuple[Path, str]
) -> None:
    folder, url = shelf
    (folder / "twice.parquet").write_bytes(twice())
    stage.apply(base_model(**CATALOG), over("filed", manifest=f"{url}/twice.parquet"))
    await stage.once()
    assert "duplicate keys" in await says(stage, "filed", "CorruptFile")
    stage.apply(over("named", names=["acme/law-1"]))
    await stage.once()
    await becomes(stage, ["acme/law-1"])


async def test_a_defect_in_looking_up_is_one_waves_trouble_and_is_told(
    stage: Stage, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(uri: str) -> bytes:
        raise RuntimeError(uri)

    monkeypatch.setattr(wave_lists, "fetch", broken)
    stage.apply(
        base_model(**CATALOG), over("filed", manifest="http://h/w.jsonl"), over("all", selector={"prefix": "b/"})
    )
    await stage.once()
    assert "RuntimeError, see the operator's log" in await says(stage, "filed", "Internal")
    await becomes(stage, ["b/c"])


async def test_what_nobody_asks_any_more_is_forgotten_and_what_says_the_same_stays_the_same(
    stage: Stage, catalog: Catalog
) -> None:
    lists, asked = Lists(CatalogReader(stage.redis), lambda: None, look_s=0.0), Lookup(stage.base, prefix="acme/")

    async def read() -> bool:
        await lists.refresh([asked])
        return asked in lists.found

    await until("the first answer", read)
    first = lists.found[asked]
    await catalog.register(entry("z/unrelated"))
    for _ in range(20):
        await lists.refresh([asked])
    assert lists.found[asked] is first
    await lists.refresh([])
    assert lists.found == {}
