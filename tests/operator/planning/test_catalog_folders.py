"""Each base keeps its catalog in its own folder: of bases that name the same folder, only the oldest has it."""

from collections.abc import Sequence

import msgspec
import pytest

from mint_contracts.records import BaseRecord, MapState
from mint_contracts.resources import BaseModelStatus, Catalog, Manifests
from mint_contracts.source import Source
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.snapshot import BaseMap, Meta, ObservedBase, Snapshot
from tests.operator.worlds import EMPTY, NOW, RELEASE, base, engine

FOLDER = "s3://bucket/catalog"


def named(key: str, uri: str = FOLDER, *, created: str = "2026-01-01T00:00:00Z", defect: str = "") -> ObservedBase:
    namespace, _, name = key.partition("/")
    of, meta = base(), Meta(namespace=namespace, name=name, uid=f"uid-{key}", created=created)
    spec = msgspec.structs.replace(of.spec, catalog=Catalog(Manifests(uri=uri)) if uri else None)
    return msgspec.structs.replace(of, meta=meta, spec=spec, defect=defect)


def planned(bases: Sequence[ObservedBase], maps: dict[str, BaseMap] | None = None) -> Plan:
    there = {of.meta.key: of for of in bases}
    empty = {key: BaseMap(state=EMPTY) for key in there}
    return plan(Snapshot(now=NOW, release=RELEASE, bases=there, maps=empty | (maps or {})))


def keepers(found: Plan) -> set[str]:
    """Return the bases whose record in the map has a catalog."""
    records = {key: change.base for key, change in found.changes.items()}
    return {key for key, record in records.items() if record and record.catalog}


def ready(status: BaseModelStatus) -> tuple[str, str, str]:
    found = next(each for each in status.conditions if each.type == "Ready")
    return found.status, found.reason, found.message


def test_bases_with_folders_of_their_own_each_have_a_catalog() -> None:
    found = planned([named("team/a", f"{FOLDER}/a"), named("team/b", f"{FOLDER}/b"), named("team/c", "")])
    assert keepers(found) == {"team/a", "team/b"}
    assert not [each for each in found.base_statuses.values() if "catalog" in ready(each)[2]]


def test_a_folder_is_the_oldest_bases_and_of_two_as_old_the_one_first_by_name() -> None:
    later = "2026-02-01T00:00:00Z"
    assert keepers(planned([named("team/a", created=later), named("team/b")])) == {"team/b"}
    assert keepers(planned([named("team/b"), named("team/a"), named("team/c")])) == {"team/a"}


def test_the_younger_one_says_which_base_has_the_folder_and_what_to_do_and_serves_on() -> None:
    answers = BaseMap(state=EMPTY, engines=(engine(0),))
    younger = named("team/smol", created="2026-02-01T00:00:00Z")
    found = planned([named("team/old"), younger], {"team/smol": answers})
    status = found.base_statuses["team/smol"]
    state, reason, message = ready(status)
    assert (state, reason, status.phase) == ("True", "CatalogConflict", "Degraded")
    assert "BaseModel team/old already keeps its catalog" in message
    assert "give each base its own folder" in message
    assert "1 of 1 engines ready" in message


def test_missing_engines_stay_the_reason_why_a_base_is_not_ready() -> None:
    state, reason, message = ready(planned([named("team/a"), named("team/b")]).base_statuses["team/b"])
    assert (state, reason) == ("False", "EnginesStarting")
    assert "give each base its own folder" in message


def test_only_the_catalog_is_stalled_and_not_the_starting_engines() -> None:
    [stalled] = [
        each
        for each in planned([named("team/a"), named("team/b")]).base_statuses["team/b"].conditions
        if each.type == "Stalled"
    ]
    assert (stalled.status, stalled.reason) == ("True", "CatalogConflict")
    assert stalled.message.endswith("give each base its own folder")


def test_a_base_of_another_namespace_is_not_named() -> None:
    found = planned([named("team/a"), named("other/b", created="2026-02-01T00:00:00Z")])
    assert keepers(found) == {"team/a"}
    message = ready(found.base_statuses["other/b"])[2]
    assert "a BaseModel of another namespace already keeps its catalog" in message
    assert "team" not in message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (FOLDER, f"{FOLDER}/"),
        (FOLDER, "s3://bucket//catalog"),
        ("pvc://claim/catalog", "file:///mint/pvc/claim/catalog"),
    ],
)
def test_one_folder_is_the_same_however_it_is_written(one: str, other: str) -> None:
    assert keepers(planned([named("team/a", one), named("team/b", other)])) == {"team/a"}


@pytest.mark.parametrize("other", [f"{FOLDER}/below", f"{FOLDER}s", "gs://bucket/catalog", "s3://other/catalog"])
def test_folders_that_only_look_alike_differ(other: str) -> None:
    assert keepers(planned([named("team/a"), named("team/b", other)])) == {"team/a", "team/b"}


def test_once_the_older_base_is_deleted_or_has_another_folder_the_younger_has_its_catalog() -> None:
    older, younger = named("team/a"), named("team/b")
    going = msgspec.structs.replace(older, meta=msgspec.structs.replace(older.meta, deleting=True))
    assert keepers(planned([going, younger])) == {"team/b"}
    assert keepers(planned([named("team/a", f"{FOLDER}/a"), younger])) == {"team/a", "team/b"}


def test_a_base_that_cannot_be_read_has_the_folder_that_the_map_says() -> None:
    broken = named("team/a", "", defect="spec.engine.device: no such device")
    record = BaseRecord("team/a", catalog=Source(FOLDER))
    known = BaseMap(state=MapState(version=1, base=record, placements={}, assigned={}))
    found = planned([broken, named("team/b")], {"team/a": known})
    assert keepers(found) == set()
    assert "BaseModel team/a already keeps its catalog" in ready(found.base_statuses["team/b"])[2]
