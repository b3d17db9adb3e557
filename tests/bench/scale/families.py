"""The parts of the scale benchmark, in the order in which they run."""

from tests.bench.scale import catalog, planning, replicas, waves
from tests.bench.scale.scale import Group

FAMILIES: dict[str, tuple[Group, ...]] = {
    "catalog": catalog.GROUPS,
    "planning": (planning.GROUP,),
    "waves": (waves.GROUP,),
    "replicas": (replicas.GROUP,),
}
