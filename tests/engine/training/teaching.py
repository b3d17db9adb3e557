"""A whole engine that trains, in this process: residency, slots, step thread and courses over a tiny base."""

import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from mint_contracts.source import Source
from mint_contracts.training import Dataset, Length, Optimizer, Policies, Policy, Reward, Train, TrainSampling
from mint_contracts.training_records import Order, Progress, Stage, TrainAssignment, WaveTraining
from mint_engine.adapters.check import Fit
from mint_engine.model.base import Base
from mint_engine.policies.checkpoints import Shelf
from mint_engine.policies.roster import Roster
from mint_engine.policies.store import store_of
from mint_engine.policies.training_context import TrainingContext
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.host import HostTier
from mint_engine.residency.loading import Loader
from mint_engine.residency.residency import Residency
from mint_engine.residency.slots import Slots
from mint_engine.scheduling.stepper import Stepper
from mint_engine.serve import EngineServer, listen
from mint_engine.training.work import Work
from tests.engine.running import settings_for
from tests.waiting import until

PROMPT = (5, 6, 7, 8)
WAVE = "default/wave"
LINES = [
    json.dumps({"prompt": f"the quick brown {word}", "answer": word}) for word in ("fox", "dog", "jumps", "lazy")
]


def train(**changes: Any) -> Train:
    """A small wave: two prompts, four completions each of eight tokens, paid by length."""
    options: dict[str, Any] = {
        "policies": Policies(count=1),
        "dataset": Dataset(lines=LINES),
        "reward": Reward(length=Length(target=12, tolerance=12)),
        "steps": 3,
        "group_size": 4,
        "prompts_per_step": 2,
        "optimizer": Optimizer(learning_rate=1e-2),
        "sampling": TrainSampling(max_tokens=8),
        "publish_every_steps": 0,
    }
    return Train(**(options | changes))


def assignment(
    policy: str, lease: int = 1, order: Order = Order.RUN, saved: int = 0, **settings: Any
) -> TrainAssignment:
    options: dict[str, Any] = {"rank": 4, "alpha": 8.0, "seed": sum(policy.encode())}
    return TrainAssignment(policy, WAVE, lease, Policy(name=policy, **(options | settings)), order, saved=saved)


@dataclass
class Scene:
    """The engine, and what the map would tell it."""

    server: EngineServer
    residency: Residency
    roster: Roster
    context: TrainingContext
    store: Source
    wave: WaveTraining

    @property
    def slots(self) -> Slots:
        return self.server.slots

    def want(self, *assignments: TrainAssignment, told: Train | None = None) -> None:
        if told is not None:
            self.wave = msgspec.structs.replace(self.wave, train=told)
        self.roster.want({WAVE: self.wave}, {each.policy: each for each in assignments})

    async def ended(self, *policies: str, stage: Stage = Stage.COMPLETE) -> Mapping[str, Progress]:
        """Progress, once all of these policies have come to that stage."""

        def look() -> bool:
            told = self.roster.progress()
            for policy in policies:
                failure = told[policy].failure
                if failure is not None and failure.terminal and stage is not Stage.FAILED:
                    raise AssertionError(failure)
            return all(told[policy].stage is stage for policy in policies)

        await until(look)
        return self.roster.progress()


class Gate:
    """Holds a thread that comes by, once so many others have gone through; opened at the end at the latest."""

    def __init__(self, after: int = 0) -> None:
        self._left = after
        self._reached, self._open = threading.Event(), threading.Event()

    def go_by(self) -> None:
        self._left -= 1
        if self._left < 0:
            self._reached.set()
            assert self._open.wait(60)

    async def reached(self) -> None:
        await until(self._reached.is_set)

    def open(self) -> None:
        self._open.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()


@asynccontextmanager
async def training(
    base: Path,
    folder: Path,
    told: Train | None = None,
    *,
    clock: Callable[[], float] = lambda: 0.0,
    engine: str = "tiny-0",
    **settings: Any,
) -> AsyncIterator[Scene]:
    """Bring one up, and end it with its books balanced and no slot lost.

    `clock` is that of its leases, which last: nobody reads the map here, and a busy machine takes its time.
    """
    store = Source(f"file://{folder}/runs")
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"training_store": store, "host_bytes": 64 << 20, "device_slots": 10}
    server = await listen(settings_for(base, **(options | settings)), engine, 0)
    disk = DiskTier(folder / "disk", 64 << 20)

    def make(_: Base, slots: Slots) -> Residency:
        loader = Loader(disk, Fit(slots.modules, slots.max_rank), slots.dtype)
        host = HostTier(server._settings.host_bytes, pinned=slots.device.type == "cuda")
        return Residency(slots, loader, host, store=Source(f"file://{folder}/adapters"))

    residency = await server.load(base, make)
    assert isinstance(residency, Residency)
    residency.in_flight, residency.trained = server.tenants, lambda: server.training_bytes
    residency.start()
    context = server.training_context(residency.lending)
    assert context is not None
    roster = Roster(context, incarnation=0, clock=clock)
    wave = WaveTraining(WAVE, 1, told or train(), store)
    try:
        yield Scene(server, residency, roster, context, store, wave)
    finally:
        await roster.close()
        assert await server.drain(20)
        await residency.close()
    residency.check()
    room = residency.lending.room
    assert (room.policies, room.lasting) == (server.training_bytes, residency.books.host.ledger.aside), "none is lost"
    assert not [copy for copy in residency.books.in_slots.values() if copy.users]


def hold_updates(scene: Scene, gate: Gate) -> None:
    """Let the step thread go by the gate whenever it has an epoch's gradients, before it takes steps along them."""
    updates = scene.server._updates
    assert updates is not None
    end = updates._end

    def held_up(work: Work) -> None:
        gate.go_by()
        end(work)

    updates._end = held_up  # type: ignore[method-assign]


async def weights(scene: Scene, policy: str) -> bytes:
    """A policy's weights, as they are now."""
    return await scene.context.step_thread.call(lambda trainer: trainer.policy(policy).weights.numpy().tobytes())


def saved(scene: Scene, policy: str) -> tuple[tuple[float, ...], bytes]:
    """Rewards and state of a policy's newest checkpoint."""
    found = Shelf(store_of(scene.store), policy).newest()
    assert found is not None
    return found[0].rewards, found[1]


def began(logs: Sequence[Mapping[str, Any]]) -> list[int]:
    """The steps that courses have begun to train at."""
    return [each["step"] for each in logs if each["event"] == "training"]


def stepper_of(scene: Scene) -> Stepper:
    """The engine's own."""
    parts = scene.server._services.parts
    assert parts is not None
    return parts.stepper


async def whole(base: Path, folder: Path, policy: str, **changes: Any) -> tuple[tuple[float, ...], bytes]:
    """What a course gives that nobody disturbs."""
    async with training(base, folder, train(**changes)) as scene:
        scene.want(assignment(policy))
        await scene.ended(policy)
        return saved(scene, policy)
