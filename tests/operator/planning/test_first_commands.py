"""Everything that the chart's texts tell a newcomer to apply first becomes Ready."""

import json
import re

import pytest
import yaml

from mint_contracts.records import EngineView, Held, MapState, Placement
from mint_operator.observing import decode
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.snapshot import BaseMap, ObservedBase, ObservedWave, Snapshot
from tests.apiserver import ROOT
from tests.engine_views import engine_record
from tests.operator.worlds import NOW, RELEASE

BASE = "default/smollm2"
ENGINE = "smollm2-0"


@pytest.mark.parametrize("text", ["README.md", "templates/NOTES.txt"])
def test_all_that_the_first_commands_apply_becomes_ready(text: str) -> None:
    bases, waves = applied((ROOT / "charts" / "mint" / text).read_text())

    first = plan(snapshot(bases, waves, {}))
    second = plan(snapshot(bases, waves, {each.adapter: each for each in first.changes[BASE].set_placements}))

    assert phases(second) == {"default/demo": "Ready"}


def applied(text: str) -> tuple[dict[str, ObservedBase], tuple[ObservedWave, ...]]:
    """Return what the text's `kubectl apply` commands create from the samples: bases by key, and waves."""
    commands = re.findall(r"^ +kubectl .*\bapply .*$", text, re.MULTILINE)
    paths = [ROOT / name for name in re.findall(r"-f (crds/samples/\S*)", "\n".join(commands))]
    files = [file for path in paths for file in (sorted(path.glob("*.yaml")) if path.is_dir() else [path])]
    objects = [yaml.safe_load(file.read_text()) for file in files]
    for each in objects:
        each["metadata"] |= {"namespace": "default", "uid": each["metadata"]["name"], "generation": 1}
    raw = [(each["kind"], json.dumps(each).encode()) for each in objects]
    bases = [decode.base_model(each) for kind, each in raw if kind == "BaseModel"]
    waves = [decode.adapter_wave(each) for kind, each in raw if kind == "AdapterWave"]
    return {base.meta.key: base for base in bases}, tuple(waves)


def snapshot(
    bases: dict[str, ObservedBase], waves: tuple[ObservedWave, ...], placements: dict[str, Placement]
) -> Snapshot:
    """Return a snapshot with one engine that holds what is placed on it."""
    held = {
        each.adapter: Held(each.adapter, each.source, place.residency)
        for each in placements.values()
        for place in each.places
        if place.engine == ENGINE
    }
    record = engine_record(ENGINE, slots_used=len(held), slots_total=12)
    state = MapState(1, None, placements, {})
    known = BaseMap(state=state, engines=(EngineView(engine=ENGINE, record=record, held=held),))
    return Snapshot(now=NOW, release=RELEASE, bases=bases, waves=waves, maps={BASE: known})


def phases(of: Plan) -> dict[str, str]:
    return {name: status.phase for name, status in of.wave_statuses.items()}
