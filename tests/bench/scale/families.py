"""The parts of the scale benchmark, in the order in which they run."""

from tests.bench.scale.scale import Group

FAMILIES: dict[str, tuple[Group, ...]] = {}
