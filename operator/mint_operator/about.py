"""What log lines are about, as fields: one who greps for a base, a wave, an engine or an adapter finds them all.

`base` and `wave` are "namespace/name", as in the placement map; an object's own `namespace` and `name` go with its
`kind`. Several of one kind are one field, an `engines` or a `waves`.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager

from structlog.contextvars import bound_contextvars

from mint_contracts.records import MapChange
from mint_operator.planning.manifests import Manifest
from mint_operator.planning.snapshot import ObservedBase, ObservedWave

SHOWN = 16  # of each; a line must stay one that can be read

Fields = dict[str, object]


def about(fields: Fields) -> AbstractContextManager[None]:
    """Put these on every line that is logged within, by whatever is called; what is empty is left out."""
    return bound_contextvars(**{name: value for name, value in fields.items() if value})


def of_resource(of: ObservedBase | ObservedWave) -> Fields:
    """A custom resource."""
    meta = of.meta
    fields: Fields = {"namespace": meta.namespace, "name": meta.name}
    if isinstance(of, ObservedWave):
        return fields | {"kind": "AdapterWave", "base": of.base, "wave": meta.key}
    return fields | {"kind": "BaseModel", "base": meta.key}


def of_manifest(manifest: Manifest) -> Fields:
    """An object that the operator makes, for one base or for several."""
    fields: Fields = {"kind": manifest.kind, "namespace": manifest.namespace, "name": manifest.name}
    one = len(manifest.bases) == 1
    return fields | ({"base": manifest.bases[0]} if one else {"bases": _some(manifest.bases)})


def of_change(change: MapChange) -> Fields:
    """What a change of the placement map is about: of many waves, engines or adapters the first."""
    placed = [*change.set_placements]
    waves = {each.wave for each in change.set_waves} | {wave for each in placed for wave in each.waves}
    return {
        "waves": _some({*waves, *change.del_waves}),
        "engines": _some({*change.set_assigned, *change.del_assigned}),
        "adapters": _some({*[each.adapter for each in placed], *change.del_placements}),
    }


def _some(names: Iterable[str]) -> list[str]:
    return sorted(names)[:SHOWN]
