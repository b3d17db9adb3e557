"""Decides which base owns a folder of catalog manifests: the oldest of those that name it. Pure."""

from collections.abc import Mapping

import msgspec

from mint_contracts.claims import folders
from mint_contracts.errors import SourceForbidden
from mint_contracts.records import Failure
from mint_contracts.source import Source
from mint_operator.planning import conditions
from mint_operator.planning.adapters import of_one_namespace
from mint_operator.planning.snapshot import BaseMap, ObservedBase


def with_catalog_owners(bases: Mapping[str, ObservedBase], maps: Mapping[str, BaseMap]) -> dict[str, ObservedBase]:
    """Return the bases, with `without_catalog` set on those whose manifests are in an older base's folder.

    Parts of a catalog do not name their base: of two bases over one folder, each would take the other's names.
    """
    found, owners = dict(bases), dict[tuple[str, ...], str]()
    for key, base in sorted(bases.items(), key=lambda each: (each[1].meta.created_s, each[0])):
        at = _place(_manifests(base, maps.get(key)))
        owner = owners.setdefault(at, key) if at else key
        if owner != key and not base.defect:
            found[key] = msgspec.structs.replace(base, without_catalog=_conflict(key, base, owner))
    return found


def _manifests(base: ObservedBase, known: BaseMap | None) -> Source | None:
    """Return where a base keeps its catalog; if its spec cannot be read, where the map says."""
    if base.defect:
        record = known.state.base if known else None
        return record.catalog if record else None
    return base.spec.catalog.source if base.spec.catalog else None


def _place(manifests: Source | None) -> tuple[str, ...]:
    """Return the folder in normal form; empty if there is none or its URI is invalid."""
    try:
        return tuple(folders(manifests)) if manifests else ()
    except SourceForbidden:
        return ()


def _conflict(key: str, base: ObservedBase, owner: str) -> Failure:
    """Return why a base has no catalog; tenants learn nothing about each other's bases."""
    keeper = f"BaseModel {owner}" if of_one_namespace(key, owner) else "a BaseModel of another namespace"
    uri = base.spec.catalog.source.uri if base.spec.catalog else ""
    message = f"spec.catalog.manifests.uri: {keeper} already keeps its catalog at {uri}, so this base has none"
    return Failure(conditions.CATALOG_CONFLICT, f"{message}; give each base its own folder", terminal=True)
