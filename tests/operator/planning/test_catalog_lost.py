"""Waves over a catalog that is not read yet after a loss of the map: engines that may hold copies lose none."""

import msgspec
import pytest

from mint_contracts.records import EngineView, Held, MapChange, Tier
from mint_contracts.resources import Catalog, Manifests, Selector, WaveAdapters
from mint_contracts.source import Source
from mint_operator.planning.base_plan import CATALOG_GRACE_S, REPORT_GRACE_S
from mint_operator.planning.plan import plan
from mint_operator.planning.snapshot import EnginePod, Listed, ObservedBase, ObservedWave, Snapshot
from tests.operator.worlds import KEY, base, engine, homes, placed, snapshot, wave, written

FOLDER = Source("s3://bucket/catalog")
NAMES = ["cat/0", "cat/1"]
LISTED = tuple(Listed(name, Source(f"s3://bucket/{name}")) for name in NAMES)
PLAIN = wave("plain", sources={"a/a": "s3://bucket/a"})


def catalogued(low: int = 1) -> ObservedBase:
    """Return a base that has a catalog."""
    of = base(low, low)
    return msgspec.structs.replace(
        of, spec=msgspec.structs.replace(of.spec, catalog=Catalog(Manifests(uri=FOLDER.uri)))
    )


def chosen(listed: tuple[Listed, ...] | None = None) -> ObservedWave:
    """Return a wave with a selector over the catalog; without `listed` it has not been looked up yet."""
    of = wave("chosen")
    spec = msgspec.structs.replace(of.spec, adapters=WaveAdapters(selector=Selector(prefix="cat/")))
    return msgspec.structs.replace(of, spec=spec, listed=listed)


def holding(ordinal: int, *names: str) -> EngineView:
    """Return an engine that holds these adapters of the catalog."""
    sources = {each.name: each.source for each in LISTED}
    held = {name: Held(name, sources[name], Tier.DEVICE) for name in names}
    return msgspec.structs.replace(engine(ordinal), held=held)


def lost_for(seconds: float, of: Snapshot) -> Snapshot:
    known = msgspec.structs.replace(of.maps[KEY], lost_s=seconds)
    return msgspec.structs.replace(of, maps={KEY: known})


@pytest.mark.parametrize("engines", [(), (engine(0),)], ids=["no engine yet", "an empty engine"])
def test_a_base_of_which_nothing_is_held_waits_for_no_catalog(engines: tuple[EngineView, ...]) -> None:
    """A gateway does not read the catalog before the base is in the map."""
    found = plan(snapshot(catalogued(), [chosen(), PLAIN], engines))
    assert homes(placed(found)) == {"a/a": ["smol-0"]}
    assert found.changes[KEY].completes


def test_where_the_map_was_lost_the_base_alone_is_announced_until_the_catalog_is_read() -> None:
    engines = [holding(0, "cat/0"), holding(1, "cat/1")]
    of = snapshot(catalogued(2), [chosen(), PLAIN], engines)
    change = plan(of).changes[KEY]
    assert change.base is not None
    assert change == MapChange(base=change.base, completes=False), "and nobody is told to hold anything"
    assert change.base.catalog == FOLDER
    state = written(of.maps[KEY].state, change)
    assert state.version is None
    assert KEY not in plan(snapshot(catalogued(2), [chosen(), PLAIN], engines, state=state)).changes, "once"
    read = plan(snapshot(catalogued(2), [chosen(LISTED), PLAIN], engines, state=state))
    assert read.changes[KEY].completes
    assert {name: homes(placed(read))[name] for name in NAMES} == {"cat/0": ["smol-0"], "cat/1": ["smol-1"]}


@pytest.mark.parametrize("seconds", [0.0, REPORT_GRACE_S, CATALOG_GRACE_S - 1])
def test_an_engine_that_runs_and_has_not_told_what_it_holds_may_hold_what_the_catalog_has(seconds: float) -> None:
    pods = {KEY: (EnginePod("smol-0", ip="10.0.0.0", ready=True),)}
    of = lost_for(seconds, snapshot(catalogued(), [chosen(), PLAIN], [engine(0, alive=False)]))
    assert not plan(msgspec.structs.replace(of, pods=pods)).changes[KEY].completes


def test_a_catalog_that_is_not_read_in_time_keeps_nothing_from_the_other_waves() -> None:
    of = snapshot(catalogued(), [chosen(), PLAIN], [holding(0, *NAMES)])
    assert not plan(lost_for(CATALOG_GRACE_S - 1, of)).changes[KEY].completes
    assert homes(placed(plan(lost_for(CATALOG_GRACE_S, of)))) == {"a/a": ["smol-0"]}
