"""Waves over the catalog as it is now, by selector or by name, on a real API server and a real Redis."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import structlog
from redis.asyncio import Redis

from mint_contracts.catalog_reader import FOUND_PER_CALL, CatalogReader
from mint_contracts.entries import Entry
from mint_contracts.functions import connect
from mint_contracts.map_reader import MapReader
from mint_contracts.records import Mentions
from mint_contracts.source import Source
from mint_operator.observing import wave_lists
from mint_operator.observing.dirt import Part
from mint_operator.observing.wave_lists import Lists
from mint_operator.planning.lookup import MOST_ADAPTERS, Lookup
from tests.operator.catalogs import CATALOG, SUPPORT, Catalog, becomes, entry, mentions, over, says, sources
from tests.operator.stage import Stage, base_model, until
from tests.redis_process import RedisProcess
from tests.waiting import PATIENCE_S


async def test_a_selector_takes_what_begins_so_and_has_the_labels(stage: Stage, catalog: Catalog) -> None:
    await stage.reconcile(
        base_model(**CATALOG), over("all", selector={"prefix": "acme/", "labels": {"team": "support"}})
    )
    found = await becomes(stage, SUPPORT)
    assert found["acme/support-0"] == "s3://adapters/acme/support-0/1"
    await stage.engine().obey()
    await stage.once(frozenset({Part.MAP}))
    status = await stage.status("AdapterWave", "all")
    assert (status["phase"], status["summary"]) == ("Ready", "3/3")


async def test_a_wave_follows_what_is_registered_retired_and_revised(stage: Stage, catalog: Catalog) -> None:
    await stage.reconcile(base_model(**CATALOG), over("all", selector={"prefix": "acme/support-"}))
    await becomes(stage, SUPPORT)
    await catalog.register(entry("acme/support-3"))
    await becomes(stage, [*SUPPORT, "acme/support-3"])
    await catalog.retire(*SUPPORT[:2])
    await becomes(stage, ["acme/support-2", "acme/support-3"])
    await catalog.register(entry("acme/support-2", "2"))

    async def revised() -> bool:
        await stage.once(frozenset({Part.MAP}))
        return (await sources(stage))["acme/support-2"].endswith("/2")

    await until("the new revision", revised)


async def test_waves_that_share_an_adapter_move_to_its_new_revision_together(stage: Stage, catalog: Catalog) -> None:
    waves = [
        over(f"w{n}", selector={"prefix": prefix}) for n, prefix in enumerate(["acme/", "acme/s", "acme/support"])
    ]
    await stage.reconcile(base_model(**CATALOG), *waves)
    await becomes(stage, ["acme/law-1", *SUPPORT])
    await catalog.register(*[entry(name, "2") for name in SUPPORT])

    async def moved() -> bool:
        await stage.once(frozenset({Part.MAP}))
        for each in range(3):
            admitted = await stage.condition("AdapterWave", f"w{each}", "Admitted")
            assert admitted["status"] == "True", admitted
        return all(uri.endswith("/2") for name, uri in (await sources(stage)).items() if name in SUPPORT)

    await until("all on the new revision", moved)


async def test_names_of_a_base_without_store_are_the_catalogs_and_pins_hold_still(
    stage: Stage, catalog: Catalog
) -> None:
    await catalog.register(entry("acme/law-1", "2"))
    base = base_model(adapters={"deviceSlots": 8}, **CATALOG)
    await stage.reconcile(base, over("named", names=["acme/law-1", "acme/law-1@1", "b/c"]))
    found = await becomes(stage, ["acme/law-1", "acme/law-1@1", "b/c"])
    assert [uri[-1] for uri in found.values()] == ["2", "1", "1"]


async def test_names_are_the_catalogs_and_those_that_it_does_not_know_the_stores(
    stage: Stage, catalog: Catalog
) -> None:
    await stage.reconcile(base_model(**CATALOG), over("named", names=["acme/law-1", "acme/law-1@1", "in/store"]))
    found = await becomes(stage, ["acme/law-1", "acme/law-1@1", "in/store"])
    law = "s3://adapters/acme/law-1/1"
    assert list(found.values()) == [law, law, "pvc://samples/adapters/in/store"]


async def test_a_wave_that_gets_another_name_keeps_what_it_has_until_that_is_looked_up(
    stage: Stage, catalog: Catalog
) -> None:
    await stage.reconcile(base_model(**CATALOG), over("named", names=["acme/law-1"]))
    await becomes(stage, ["acme/law-1"])
    await stage.reconcile(over("named", names=["acme/law-1", "b/c"]))
    assert "acme/law-1" in await sources(stage)
    await becomes(stage, ["acme/law-1", "b/c"])


async def test_a_wave_that_gets_another_name_is_ready_only_with_that(stage: Stage, catalog: Catalog) -> None:
    engine = stage.engine()
    await stage.reconcile(base_model(adapters={"deviceSlots": 8}, **CATALOG), over("named", names=["acme/law-1"]))
    await becomes(stage, ["acme/law-1"])
    await engine.obey()
    await stage.once()
    assert (await stage.condition("AdapterWave", "named"))["status"] == "True"
    await stage.reconcile(over("named", names=["acme/law-1", "acme/law-2"]))
    ready = await stage.condition("AdapterWave", "named")
    assert (ready["status"], ready["reason"], ready["observedGeneration"]) == ("False", "CatalogUnread", 2)

    async def name_missed() -> bool:
        await stage.once(frozenset({Part.MAP}))
        condition = await stage.condition("AdapterWave", "named")
        return bool(condition["reason"] == "AdapterNotFound")

    await until("the name to be missed", name_missed)
    ready = await stage.condition("AdapterWave", "named")
    assert ready["message"].startswith("1 of 1 copies ready, of those that it had before; adapter 'acme/law-2'")
    assert (await stage.status("AdapterWave", "named"))["phase"] == "Degraded"
    assert (await stage.condition("AdapterWave", "named", "Progressing"))["status"] == "False"
    await catalog.register(entry("acme/law-2"))
    await becomes(stage, ["acme/law-1", "acme/law-2"])
    await engine.obey()
    await stage.once()
    assert (await stage.condition("AdapterWave", "named"))["status"] == "True"


async def test_a_wave_stays_ready_where_an_operator_begins_and_cannot_look_it_up(
    stage: Stage, catalog: Catalog
) -> None:
    await stage.reconcile(base_model(**CATALOG), over("all", selector={"prefix": "acme/support-"}))
    await becomes(stage, SUPPORT)
    await stage.engine().obey()
    await stage.once()
    await stage.redis.delete(*[key async for key in stage.redis.scan_iter(match="*:catalog*")])
    stage.operator(2)
    for _ in range(3):
        await stage.once()
        assert (await stage.condition("AdapterWave", "all"))["status"] == "True"


async def test_what_is_wrong_is_a_condition_that_says_what_to_do(
    stage: Stage, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wave_lists, "MOST_ADAPTERS", 2)
    away = "http://127.0.0.1:9/none.jsonl"
    await stage.reconcile(
        base_model(**CATALOG),
        over("none", selector={"prefix": "nobody/"}),
        over("many", selector={"prefix": "acme/"}),
        over("pin", names=["acme/law-1@7"]),
        over("away", manifest=away),
    )
    assert "register some, or change the selector" in await says(stage, "none", "NoMatch")
    assert "narrow it" in await says(stage, "many", "TooManyAdapters")
    assert "'acme/law-1@7'" in await says(stage, "pin", "AdapterNotFound")
    assert away in await says(stage, "away", "SourceUnavailable")
    assert await mentions(stage, "none", "many", "pin", "away") == [
        Mentions(("nobody/",)),
        Mentions(),
        Mentions(("acme/law-1@7",)),
        Mentions(others=True),
    ]
    await catalog.register(entry("nobody/1"), entry("acme/law-1", "7"))
    await becomes(stage, ["acme/law-1@7", "nobody/1"])


async def test_without_a_catalog_a_selector_says_which_field_to_set(stage: Stage) -> None:
    await stage.reconcile(
        base_model(), over("all", selector={"prefix": "acme/"}), over("pin", names=["acme/law-1@7"])
    )
    for wave in ("all", "pin"):
        assert "spec.catalog.manifests.uri" in await says(stage, wave, "NoCatalog")
        assert (await stage.status("AdapterWave", wave))["phase"] == "Failed"


async def test_an_operator_that_begins_while_the_catalog_is_rebuilt_lets_go_of_nothing(
    stage: Stage, catalog: Catalog
) -> None:
    await stage.reconcile(base_model(**CATALOG), over("all", selector={"prefix": "acme/support-"}))
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


async def test_an_operator_that_begins_where_all_was_lost_announces_the_base_and_lets_go_of_nothing(
    stage: Stage, catalog: Catalog
) -> None:
    """Only that tells a gateway that starts, too, where the catalog is; the operator waits for it to be read."""
    await stage.reconcile(base_model(**CATALOG), over("all", selector={"prefix": "acme/support-"}))
    await becomes(stage, SUPPORT)
    engine, reader = stage.engine(), MapReader(stage.redis)
    await engine.obey()
    await stage.redis.flushall()
    await engine.report()
    stage.operator(2)
    assert (await stage.once())["changes"] == 1
    state, part = await reader.state(stage.base, [engine.name]), await reader.part(stage.base, engine.name)
    assert state.base is not None
    assert (state.base.catalog, state.version, part.version) == (Source("s3://catalog/smol"), None, None)
    for _ in range(3):
        assert not (await stage.once())["changes"]
    await Catalog(stage).register(*[entry(name) for name in SUPPORT])
    await becomes(stage, SUPPORT)
    assert sorted(await engine.assigned()) == SUPPORT
    assert (await stage.condition("AdapterWave", "all"))["status"] == "True"


async def test_unused_lookups_are_forgotten_and_equal_answers_stay_identical(stage: Stage, catalog: Catalog) -> None:
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


class Halting(CatalogReader):
    """A reader that finds names at once, but returns them only when it may."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.found, self.may = asyncio.Event(), asyncio.Event()

    async def find_each(self, base: str, asked: Sequence[tuple[str, str]]) -> list[Entry | None]:
        entries = await super().find_each(base, asked)
        self.found.set()
        await asyncio.wait_for(self.may.wait(), PATIENCE_S)
        return entries


async def test_changes_during_a_waves_first_lookup_are_not_missed(stage: Stage, catalog: Catalog) -> None:
    reader = Halting(stage.redis)
    lists, asked = Lists(reader, lambda: None, look_s=0.0), Lookup(stage.base, names=("acme/law-1", "b/c"))
    await lists.refresh([asked])
    await asyncio.wait_for(reader.found.wait(), PATIENCE_S)
    await catalog.register(entry("acme/law-1", "2"))
    for _ in range(3):
        await lists.refresh([asked])
        await asyncio.sleep(0)
    reader.may.set()

    async def new() -> bool:
        await lists.refresh([asked])
        return asked in lists.found and (lists.found[asked].listed or ())[0].source.revision == "2"

    await until("the new revision", new)


async def test_thousands_of_names_take_few_calls(stage: Stage, catalog: Catalog) -> None:
    names = [f"many/{number}" for number in range(MOST_ADAPTERS - 2)]
    await catalog.register(*map(entry, names))
    store = Source("pvc://samples/adapters")
    lists = Lists(CatalogReader(stage.redis), lambda: None, look_s=0.0)
    asked = Lookup(stage.base, names=(*names, "acme/law-1@1", "in/store"), store=store)
    await stage.redis.config_resetstat()

    async def read() -> bool:
        await lists.refresh([asked])
        return asked in lists.found

    await until("all names", read)
    listed = lists.found[asked].listed
    assert listed is not None
    assert [each.name for each in listed] == list(asked.names)
    expected = [entry(name).uri for name in (*names, "acme/law-1")]
    assert [each.source.uri for each in listed] == [*expected, f"{store.uri}/in/store"]
    called = (await stage.redis.info("commandstats"))["cmdstat_fcall"]["calls"]
    assert called == math.ceil(MOST_ADAPTERS / FOUND_PER_CALL) < 20


async def test_a_redis_that_is_silent_is_asked_for_one_catalog_not_for_each(tmp_path: Path) -> None:
    with RedisProcess(tmp_path) as redis:
        client = connect(redis.url)
        lists = Lists(CatalogReader(client), lambda: None)
        asked = [Lookup(f"demo/base-{number}", prefix="acme/") for number in range(4)]
        with redis.silent(), structlog.testing.capture_logs() as logs:
            await lists.refresh(asked)
        assert len([each for each in logs if "not read" in each["event"]]) == 1
        await lists.refresh(())
        await client.aclose()
