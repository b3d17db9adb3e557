"""Whose catalog a folder of manifests is: of the bases that name it, the oldest's alone. Pure."""

from collections.abc import Mapping

import msgspec

from mint_contracts.claims import folders
from mint_contracts.errors import SourceForbidden
from mint_contracts.records import Failure
from mint_contracts.source import Source
from mint_operator.planning import conditions
from mint_operator.planning.adapters import of_one_namespace
from mint_operator.planning.snapshot import BaseMap, ObservedBase


def apart(bases: Mapping[str, ObservedBase], maps: Mapping[str, BaseMap]) -> dict[str, ObservedBase]:
    """The bases; those whose manifests lie where an older one's do say why they are without a catalog.

    Parts of a catalog do not tell whose they are: over one folder each base would take the other's names for its own.
    """
    found, owners = dict(bases), dict[tuple[str, ...], str]()
    for key, base in sorted(bases.items(), key=lambda each: (each[1].meta.created_s, each[0])):
        at = _place(_manifests(base, maps.get(key)))
        owner = owners.setdefault(at, key) if at else key
        if owner != key and not base.defect:
            found[key] = msgspec.structs.replace(base, without_catalog=_conflict(key, base, owner))
    return found


def _manifests(base: ObservedBase, known: BaseMap | None) -> Source | None:
    """Where a base keeps its catalog: one that cannot be read, where the map says, which stays as it is."""
    if base.defect:
        record = known.state.base if known else None
        return record.catalog if record else None
    return base.spec.catalog.source if base.spec.catalog else None


def _place(manifests: Source | None) -> tuple[str, ...]:
    """The folder, alike for each way to write it; empty where there is none, or none that can be read."""
    try:
        return tuple(folders(manifests)) if manifests else ()
    except SourceForbidden:
        return ()


def _conflict(key: str, base: ObservedBase, owner: str) -> Failure:
    """Why a base is without its catalog; tenants learn nothing of each other's bases."""
    keeper = f"BaseModel {owner}" if of_one_namespace(key, owner) else "a BaseModel of another namespace"
    uri = base.spec.catalog.source.uri if base.spec.catalog else ""
    message = f"spec.catalog.manifests.uri: {keeper} already keeps its catalog at {uri}, so this base has none"
    return Failure(conditions.CATALOG_CONFLICT, f"{message}; give each base its own folder", terminal=True)
