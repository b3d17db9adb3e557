"""What log lines are about, as fields, so that a search for a base, wave, engine or adapter finds all its lines.

`base` and `wave` are "namespace/name", as in the placement map; an object's own `namespace` and `name` go with its
`kind`. Several of one kind share a plural field, such as `engines` or `waves`.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager

from structlog.contextvars import bound_contextvars

from mint_contracts.records import MapChange
from mint_operator.planning.manifests import Manifest
from mint_operator.planning.snapshot import ObservedBase, ObservedWave

SHOWN = 16  # names per field at most, so that lines stay readable

Fields = dict[str, object]


def about(fields: Fields) -> AbstractContextManager[None]:
    """Add these fields to every line logged within the context, also by called code; empty fields are left out."""
    return bound_contextvars(**{name: value for name, value in fields.items() if value})


def of_resource(of: ObservedBase | ObservedWave) -> Fields:
    """Return the fields of a custom resource."""
    meta = of.meta
    fields: Fields = {"namespace": meta.namespace, "name": meta.name}
    if isinstance(of, ObservedWave):
        return fields | {"kind": "AdapterWave", "base": of.base, "wave": meta.key}
    return fields | {"kind": "BaseModel", "base": meta.key}


def of_manifest(manifest: Manifest) -> Fields:
    """Return the fields of an object that the operator makes for one or several bases."""
    fields: Fields = {"kind": manifest.kind, "namespace": manifest.namespace, "name": manifest.name}
    one = len(manifest.bases) == 1
    return fields | ({"base": manifest.bases[0]} if one else {"bases": _some(manifest.bases)})


def of_change(change: MapChange) -> Fields:
    """Return the fields of a change to the placement map, with at most SHOWN waves, engines and adapters."""
    placed = [*change.set_placements]
    waves = {each.wave for each in change.set_waves} | {wave for each in placed for wave in each.waves}
    return {
        "waves": _some({*waves, *change.del_waves}),
        "engines": _some({*change.set_assigned, *change.del_assigned}),
        "adapters": _some({*[each.adapter for each in placed], *change.del_placements}),
    }


def _some(names: Iterable[str]) -> list[str]:
    return sorted(names)[:SHOWN]
