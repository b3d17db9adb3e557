"""Worlds in which some waves, bases or records cannot be read, as after a rollback."""

from collections.abc import Sequence

import msgspec

from mint_contracts.records import EngineView, MapState, Tier
from mint_contracts.training import Policies, Policy, Train
from mint_contracts.training_records import PartAssignment, PartTraining, Stage
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.snapshot import ObservedBase, ObservedWave, Snapshot
from tests.operator import training_worlds
from tests.operator.training_worlds import World, engines, planned, training_wave
from tests.operator.worlds import KEY, engine, snapshot, unread, written


def condition(of: Plan, name: str, kind: str = "Ready") -> tuple[str, str, str]:
    conditions = of.wave_statuses[f"team/{name}"].conditions
    found = next(each for each in conditions if each.type == kind)
    return found.status, found.reason, found.message


class Settled:
    """A base and waves, planned until nothing changes, and the resulting map."""

    def __init__(self, of: ObservedBase, waves: Sequence[ObservedWave]) -> None:
        self.base, self.waves, self.state = of, list(waves), MapState(1, None, {}, {})
        self.plan()
        self.plan()

    def views(self) -> list[EngineView]:
        held: dict[str, dict[str, Tier]] = {}
        for name, each in self.state.placements.items():
            for place in each.places:
                held.setdefault(place.engine, {})[name] = place.residency
        count = self.base.spec.engine.replicas.max
        return [engine(ordinal, held.get(f"smol-{ordinal}")) for ordinal in range(count)]

    def seen(self) -> Snapshot:
        return snapshot(self.base, self.waves, self.views(), state=self.state)

    def plan(self) -> Plan:
        found = plan(self.seen())
        if KEY in found.changes:
            self.state = written(self.state, found.changes[KEY])
        self.waves = [
            msgspec.structs.replace(each, status=found.wave_statuses.get(each.meta.key, each.status))
            for each in self.waves
        ]
        return found

    def homes(self, name: str) -> dict[str, list[str]]:
        return {
            adapter: [place.engine for place in each.places]
            for adapter, each in sorted(self.state.placements.items())
            if f"team/{name}" in each.waves
        }


def lessons() -> World:
    """Return a world with a wave of two policies that trains on one of two engines."""
    world = planned(training_worlds.base(2, 2), [training_wave("w", 2)], engines(2))
    world.hear(Stage.RUNNING, 3)
    return world


def lose_sight(world: World) -> None:
    world.waves = [unread(each) if each.meta.name == "w" else each for each in world.waves]


def in_part(world: World) -> None:
    """Replace training records by what is read of them after a rollback: users' settings are not understood."""
    training = {
        key: PartTraining(
            **{f: getattr(each, f) for f in each.__struct_fields__} | {"train": Train(policies=Policies(), steps=0)}
        )
        for key, each in world.training.training.items()
    }
    trains = {
        name: {
            policy: PartAssignment(
                **{f: getattr(lease, f) for f in lease.__struct_fields__} | {"settings": Policy(policy)}
            )
            for policy, lease in of.items()
        }
        for name, of in world.training.trains.items()
    }
    world.training = msgspec.structs.replace(world.training, training=training, trains=trains)
