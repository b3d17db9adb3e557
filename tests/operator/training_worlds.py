"""Small training worlds: waves of policies, engines' reports, and the map after each plan is written."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from mint_contracts.records import EngineView, Failure, MapChange, MapState, Placement, WaveRecord
from mint_contracts.resources import (
    AdapterWaveSpec,
    AdapterWaveStatus,
    BaseModelRef,
    Serve,
    Tenant,
    TrainingLimits,
    TrainingStatus,
    TrainingStore,
)
from mint_contracts.source import Source
from mint_contracts.training import Dataset, ExactMatch, FailurePolicy, Policies, Reward, Train
from mint_contracts.training_records import (
    Order,
    Progress,
    Published,
    Stage,
    TrainAssignment,
    TrainChange,
    TrainState,
)
from mint_operator.planning.base_plan import Known
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.sizes import Size
from mint_operator.planning.snapshot import (
    BaseMap,
    Child,
    EnginePod,
    Inputs,
    Meta,
    ObservedBase,
    ObservedWave,
    Snapshot,
    TrainKnown,
)
from tests.operator import worlds
from tests.operator.worlds import KEY, NOW, RELEASE

TRAINING = TrainingLimits(store=TrainingStore(uri="pvc://training/runs"))
STEPS = 10
FAILURE = Failure("NonFiniteWeights", "the loss is not a number", terminal=True)
Trains = dict[str, dict[str, TrainAssignment]]


def base(
    low: int = 1, high: int = 1, slots: int = 8, *, store: bool = True, tenants: Sequence[Tenant] = ()
) -> ObservedBase:
    of = worlds.base(low, high, slots)
    spec = msgspec.structs.replace(of.spec, training=TRAINING if store else None, tenants=list(tenants))
    return msgspec.structs.replace(of, spec=spec)


def training_wave(
    name: str,
    count: int = 4,
    *,
    run: str = "",
    admission: Literal["Gang", "Elastic"] = "Gang",
    max_failed: int | None = None,
    priority: int = 0,
    status: AdapterWaveStatus | None = None,
    serve: Serve | None = None,
    namespace: str = "team",
    created: str = "2026-01-01T00:00:00Z",
    **fields: Any,
) -> ObservedWave:
    """Return a wave of `count` policies named NAMESPACE/NAME-i."""
    train = Train(
        policies=fields.pop("policies", Policies(count=count)),
        dataset=fields.pop("dataset", Dataset(lines=['{"prompt": "x", "answer": "y"}'])),
        reward=Reward(exact_match=ExactMatch()),
        steps=fields.pop("steps", STEPS),
        admission=admission,
        failure_policy=FailurePolicy(max_failed=max_failed),
        **fields,
    )
    spec = AdapterWaveSpec(
        base_model_ref=BaseModelRef(name="smol", namespace="" if namespace == "team" else "team"),
        train=train,
        serve=serve or Serve(),
        priority=priority,
    )
    meta = Meta(namespace, name, uid=run or f"uid-{name}", generation=1, created=created)
    return ObservedWave(meta=meta, spec=spec, status=status or AdapterWaveStatus())


class World(msgspec.Struct):
    """One base that is planned repeatedly; `step` writes each plan as the applier would."""

    base: ObservedBase
    waves: list[ObservedWave]
    engines: list[EngineView]
    training: TrainState = TrainState()
    placements: dict[str, Placement] = {}
    recorded: dict[str, WaveRecord] = {}
    version: int | None = 1
    away_s: dict[str, float] = {}
    unready_s: dict[str, float] = {}
    pods: tuple[EnginePod, ...] = ()
    inputs: Inputs = Inputs()
    sizes: Mapping[str, Size] = {}
    replicas: int = 0  # of its StatefulSet; 0: there is none yet
    known: Mapping[str, Known] | None = None  # by the last plan, for a test that sets it
    now: float = NOW
    redis_ok: bool = True

    def plan(self) -> Plan:
        self.now += 1.0
        state = MapState(self.version, None, dict(self.placements), {}, dict(self.recorded))
        known = BaseMap(
            state=state,
            engines=tuple(self.engines),
            away_s=self.away_s,
            unready_s=self.unready_s,
            sizes=self.sizes,
        )
        child = Child(*self.base.workload, replicas=self.replicas)
        return plan(
            Snapshot(
                now=self.now,
                release=RELEASE,
                bases={KEY: self.base},
                waves=tuple(self.waves),
                redis_ok=self.redis_ok,
                maps={KEY: known} if self.redis_ok else {},
                pods={KEY: self.pods},
                children={child.key: child} if self.replicas else {},
                training={KEY: TrainKnown(self.training, self.training)},
                inputs=self.inputs,
            ),
            self.known,
        )

    def step(self) -> Plan:
        """Plan, write the plan, and give every wave its new status."""
        found = self.plan()
        self.placements = worlds.placed(found, self.placements)
        change = found.changes.get(KEY, MapChange())
        self.recorded |= {each.wave: each for each in change.set_waves}
        self.recorded = {key: each for key, each in self.recorded.items() if key not in change.del_waves}
        self.training = written(self.training, found.training.get(KEY, TrainChange()))
        self.version = self.version or 1
        self.waves = [
            msgspec.structs.replace(wave, status=found.wave_statuses.get(wave.meta.key, wave.status))
            for wave in self.waves
        ]
        return found

    def status(self, name: str) -> AdapterWaveStatus:
        return next(wave.status for wave in self.waves if wave.meta.name == name)

    @property
    def leases(self) -> dict[str, tuple[str, TrainAssignment]]:
        """Each policy's engine and lease. Fails the test if two engines have the same policy."""
        found: dict[str, tuple[str, TrainAssignment]] = {}
        for engine, of in self.training.trains.items():
            for name, lease in of.items():
                assert name not in found, f"{name} is leased to {engine} and {found[name][0]}"
                found[name] = (engine, lease)
        return found

    def complete(self) -> None:
        """Let engines report that the policies that they train are complete, and plan for that."""
        self.hear(Stage.COMPLETE, STEPS, published=published(STEPS))

    def hear(self, stage: Stage, step: int = 0, *names: str, **fields: Any) -> None:
        """Let engines report as by `say`, and plan for that."""
        self.say(stage, step, *names, **fields)
        self.step()

    def say(self, stage: Stage, step: int = 0, *names: str, **fields: Any) -> None:
        """Let engines report this stage and step for the policies that they train (all, or those named)."""
        progress = {engine: dict(of) for engine, of in self.training.progress.items()}
        for engine, of in self.training.trains.items():
            for name, lease in of.items():
                if not names or name in names:
                    progress.setdefault(engine, {})[name] = Progress(
                        policy=name,
                        wave=lease.wave,
                        lease=lease.lease,
                        stage=stage,
                        run=lease.run,
                        step=step,
                        steps=STEPS,
                        **fields,
                    )
        self.training = msgspec.structs.replace(self.training, progress=progress)

    def start_anew(self, incarnation: int) -> None:
        """Restart engines and operator: nobody reports or remembers what trained before."""
        self.engines = [restarted(view, incarnation) for view in self.engines]
        self.training = msgspec.structs.replace(self.training, progress={})

    def change(self, name: str, **fields: Any) -> None:
        """Change fields of a wave's `spec.train`, as a person would."""
        self.waves = [_changed(wave, fields) if wave.meta.name == name else wave for wave in self.waves]


def planned(base: ObservedBase, waves: list[ObservedWave], engines: list[EngineView], **fields: Any) -> World:
    """Return a world that was planned once."""
    world = World(base, waves, engines, **fields)
    world.step()
    return world


def _changed(wave: ObservedWave, fields: Mapping[str, Any]) -> ObservedWave:
    assert wave.spec.train is not None
    train = msgspec.structs.replace(wave.spec.train, **fields)
    return msgspec.structs.replace(wave, spec=msgspec.structs.replace(wave.spec, train=train))


def written(state: TrainState, change: TrainChange) -> TrainState:
    """Return the training part of the map once a change is written."""
    training = dict(state.training) | {each.wave: each for each in change.set_training}
    trains: Trains = {engine: dict(of) for engine, of in state.trains.items()}
    for engine, leases in change.set_trains.items():
        trains.setdefault(engine, {}).update({each.policy: each for each in leases})
    for engine, names in change.del_trains.items():
        for name in names:
            del trains[engine][name]
    for wave in change.del_training:
        del training[wave]
    return TrainState(training=training, trains=trains, progress=state.progress)


def published(step: int) -> Published:
    return Published(revision=f"sha256:{step}", step=step, source=Source(uri=f"pvc://training/runs/r{step}"))


def engines(count: int) -> list[EngineView]:
    return [worlds.engine(ordinal) for ordinal in range(count)]


def restarted(view: EngineView, incarnation: int) -> EngineView:
    assert view.record is not None
    return msgspec.structs.replace(view, record=msgspec.structs.replace(view.record, incarnation=incarnation))


def loading(view: EngineView, incarnation: int) -> EngineView:
    """Return the engine's next start, which has yet to load its base."""
    again = restarted(view, incarnation)
    assert again.record is not None
    return msgspec.structs.replace(again, record=msgspec.structs.replace(again.record, ready=False))


def dead(view: EngineView) -> EngineView:
    return msgspec.structs.replace(view, record=None)


def named(wave: str, indices: Sequence[int]) -> list[str]:
    return [f"team/{wave}-{index}" for index in indices]


def condition(world: World, wave: str, kind: str) -> tuple[str, str, str]:
    """Return the status, reason and message of a wave's condition."""
    found = next(each for each in world.status(wave).conditions if each.type == kind)
    return found.status, found.reason, found.message


def training(world: World) -> TrainingStatus:
    """Return the training part of the status of wave `w`."""
    found = world.status("w").training
    assert found is not None
    return found


def orders(world: World) -> set[Order]:
    return {lease.order for _, lease in world.leases.values()}


def replicas(found: Plan) -> int:
    """Return the number of engines that the plan runs."""
    specs = [each.body["spec"] for each in found.manifests if each.kind == "StatefulSet"]
    return int(specs[0]["replicas"])
