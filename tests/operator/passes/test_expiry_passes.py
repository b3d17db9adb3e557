"""Waves with a ttl over a real API server and a real Redis: they end by the passing of time alone."""

import msgspec

from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.map_reader import MapReader
from mint_contracts.resources import Serve
from mint_operator.observing.dirt import EVERYTHING, Part
from mint_operator.observing.wave_adapters import WaveAdapters
from mint_operator.observing.wave_lists import Lists
from tests.operator.catalogs import CATALOG, SUPPORT, Catalog, becomes, entry, over
from tests.operator.stage import ADAPTERS, Stage, adapter_wave, base_model, running, until

HOUR_S = 3600.0
MAP = frozenset({Part.MAP})


def lasting(ttl: str | None) -> dict[str, object]:
    return adapter_wave("demo", ADAPTERS, serve={"ttl": ttl} if ttl else {})


async def recorded(stage: Stage) -> dict[str, tuple[bool, str]]:
    """Return whether each wave is admitted according to the map, and the reason if not."""
    records = await MapReader(stage.redis).waves(stage.base)
    return {name.rpartition("/")[2]: (each.admitted, each.reason) for name, each in records.items()}


async def placements(stage: Stage) -> list[str]:
    return sorted(await MapReader(stage.redis).placements(stage.base))


async def test_a_wave_of_a_few_seconds_becomes_complete_and_leaves_the_map_while_the_loop_runs(stage: Stage) -> None:
    stage.apply(base_model(), adapter_wave("stays", ADAPTERS[:1]))
    engine = stage.engine()
    await engine.report()
    async with running(stage, engine):
        stage.apply(adapter_wave("goes", ADAPTERS, serve={"ttl": "3s"}))

        async def complete() -> bool:
            return (await stage.condition("AdapterWave", "goes", "Complete")).get("reason") == "Expired"

        async def gone() -> bool:
            return await placements(stage) == ADAPTERS[:1]

        await until("the wave to be Complete", complete)
        await until("its placements to go", gone)
    stage.kubectl("wait", "--for=condition=Complete", "adapterwave/goes", "--timeout=60s")
    assert (await stage.status("AdapterWave", "goes"))["phase"] == "Expired"
    assert (await stage.status("AdapterWave", "stays"))["phase"] != "Expired"


async def test_a_wave_expires_in_the_first_pass_after_its_time_without_other_changes(stage: Stage) -> None:
    stage.apply(base_model(), lasting("1h"))
    for _ in range(3):
        await stage.once()
    assert await stage.once(MAP) == {}
    stage.ahead_s = HOUR_S
    await stage.once(MAP)
    assert (await stage.status("AdapterWave", "demo"))["phase"] == "Expired"
    assert (await placements(stage), await recorded(stage)) == ([], {"demo": (False, "Expired")})
    await stage.once()
    assert await stage.once(MAP) == {}, "it is told once"
    await stage.reconcile(lasting("2h"))
    assert (await stage.status("AdapterWave", "demo"))["phase"] == "Placing"
    assert (await placements(stage), await recorded(stage)) == (ADAPTERS, {"demo": (True, "")})


async def test_the_map_speaks_of_it_until_it_is_deleted(stage: Stage) -> None:
    stage.apply(base_model(), lasting("1h"))
    stage.ahead_s = HOUR_S
    await stage.once()
    assert await recorded(stage) == {"demo": (False, "Expired")}
    stage.kubectl("delete", "adapterwave/demo")
    await stage.once()
    assert await recorded(stage) == {}


async def test_a_new_operator_finds_it_expired_as_the_last_one_did(stage: Stage) -> None:
    await stage.reconcile(base_model(), lasting("1h"))
    stage.ahead_s = HOUR_S
    await stage.operator(2).once()
    assert (await stage.status("AdapterWave", "demo"))["phase"] == "Expired"
    assert await placements(stage) == []


async def test_an_expired_wave_follows_its_selector_no_more_until_it_is_back(stage: Stage, catalog: Catalog) -> None:
    wave = over("all", selector={"prefix": "acme/support-"})
    await stage.reconcile(base_model(**CATALOG), wave | {"spec": wave["spec"] | {"serve": {"ttl": "1h"}}})
    await becomes(stage, SUPPORT)
    stage.ahead_s = HOUR_S
    await becomes(stage, [])
    await catalog.register(entry("acme/support-3"))
    await becomes(stage, [])
    assert (await stage.status("AdapterWave", "all"))["counts"]["adapters"] == len(SUPPORT)
    await stage.reconcile(wave | {"spec": wave["spec"] | {"serve": {}}})
    await becomes(stage, [*SUPPORT, "acme/support-3"])


async def test_an_expired_waves_adapters_are_not_looked_up(stage: Stage, catalog: Catalog) -> None:
    await stage.reconcile(base_model(**CATALOG), over("all", names=SUPPORT))
    lists = Lists(CatalogReader(stage.redis), stage.dirt.wake, look_s=0.0)
    adapters = WaveAdapters(lists)
    of = await stage.loop._observer.observe(EVERYTHING, {})
    serve = Serve(ttl="1h")
    waves = [msgspec.structs.replace(each, spec=msgspec.structs.replace(each.spec, serve=serve)) for each in of.waves]

    async def looked_up() -> bool:
        await adapters.attach(waves, of.bases, of.maps, of.now)
        return bool(lists.found)

    await until("its names to be looked up", looked_up)
    await adapters.attach(waves, of.bases, of.maps, of.now + HOUR_S)
    assert lists.found == {}
