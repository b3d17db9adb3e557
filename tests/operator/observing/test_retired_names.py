"""Waves with retired names: new ones are refused; served ones continue without them, even with a new operator."""

from pathlib import Path

import msgspec
import pytest

from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.entries import Entry
from mint_contracts.records import Mentions
from mint_operator.observing import wave_lists
from mint_operator.observing.dirt import Part
from mint_operator.observing.wave_lists import Lists
from mint_operator.planning import status_write
from mint_operator.planning.lookup import Lookup
from tests.operator.catalogs import CATALOG, RETIRED, Catalog, becomes, entry, mentions, over, says, sources
from tests.operator.stage import Stage, base_model, until


async def lose_one(stage: Stage, catalog: Catalog) -> None:
    """Serve a wave of two names, and then retire one of them."""
    await stage.reconcile(base_model(**CATALOG), over("named", names=["acme/law-1", "in/store"]))
    await becomes(stage, ["acme/law-1", "in/store"])
    await catalog.retire("in/store")


async def test_a_wave_that_names_what_was_retired_is_refused_though_the_store_may_have_it(
    stage: Stage, catalog: Catalog, shelf: tuple[Path, str]
) -> None:
    folder, url = shelf
    (folder / "wave.jsonl").write_bytes(msgspec.json.Encoder().encode_lines([Entry("in/store"), Entry("b/c")]))
    await catalog.retire("in/store")
    await stage.reconcile(
        base_model(**CATALOG),
        over("named", names=["b/c", "in/store"]),
        over("pinned", names=["in/store@1"]),
        over("filed", manifest=f"{url}/wave.jsonl"),
    )
    for wave in ("named", "pinned", "filed"):
        message = await says(stage, wave, "AdapterNotFound")
        assert f"{RETIRED} of {stage.base}" in message
        assert "remove it from the wave" in message
    found = await mentions(stage, "named", "pinned", "filed")
    assert found == [Mentions(("in/store",)), Mentions(("in/store@1",)), Mentions(("in/store",))]
    await catalog.register(entry("in/store", "1"))
    await becomes(stage, ["b/c", "in/store", "in/store@1"])


async def test_a_wave_that_is_served_goes_on_without_what_is_retired(
    stage: Stage, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_write, "COUNTS_EVERY_S", 0.0)
    await lose_one(stage, catalog)
    await becomes(stage, ["acme/law-1"])

    async def status_names_it() -> bool:
        await stage.once(frozenset({Part.MAP}))
        return RETIRED in (await stage.condition("AdapterWave", "named", "Admitted"))["message"]

    await until("the status to tell", status_names_it)
    await catalog.retire("acme/law-1")
    assert RETIRED in await says(stage, "named", "AdapterNotFound")
    await becomes(stage, [])
    await catalog.register(entry("in/store"), entry("acme/law-1"))
    assert (await becomes(stage, ["acme/law-1", "in/store"]))["in/store"] == "s3://adapters/in/store/1"


async def test_an_operator_that_was_away_when_a_name_was_retired_takes_it_out_alone(
    stage: Stage, catalog: Catalog
) -> None:
    await lose_one(stage, catalog)
    stage.operator(2)
    await stage.once()
    await becomes(stage, ["acme/law-1"])


async def test_an_operator_that_begins_goes_on_with_what_is_left_of_a_wave(
    stage: Stage, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_write, "COUNTS_EVERY_S", 0.0)
    await lose_one(stage, catalog)
    await becomes(stage, ["acme/law-1"])
    stage.operator(2)

    async def status_names_it() -> bool:
        await stage.once()
        assert list(await sources(stage)) == ["acme/law-1"]
        return RETIRED in (await stage.condition("AdapterWave", "named", "Admitted"))["message"]

    await until("the status to tell", status_names_it)


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

        await until(f"the answer {reason!r}", probe)
        return [each.name for each in lists.found[asked].listed or ()], lists.found[asked].gone

    assert await answers("") == (list(asked.names), frozenset())
    await stage.redis.delete(*[key async for key in stage.redis.scan_iter(match="*:catalog*")])
    assert await answers("MapUnavailable") == (list(asked.names), frozenset())
    await Catalog(stage).register(entry("acme/law-1"), Entry("b/c", retired=True))
    left = await answers("AdapterNotFound")
    assert left == (["acme/law-1", "acme/support-1"], frozenset({"b/c"}))
    await stage.redis.delete(*[key async for key in stage.redis.scan_iter(match="*:catalog*")])
    assert await answers("MapUnavailable") == left
