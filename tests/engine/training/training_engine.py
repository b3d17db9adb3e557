"""A complete training engine in this process: residency, slots, step thread and courses over a tiny base."""

import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from mint_contracts.records import Failure
from mint_contracts.source import Source
from mint_contracts.training import Dataset, Length, Optimizer, Policies, Policy, Reward, Train, TrainSampling
from mint_contracts.training_records import Order, Progress, Stage, TrainAssignment, WaveTraining
from mint_engine.adapters.check import Fit
from mint_engine.model.base import Base
from mint_engine.policies.courses.roster import Roster
from mint_engine.policies.stored.checkpoints import Checkpoints
from mint_engine.policies.stored.store import store_of
from mint_engine.policies.training_context import TrainingContext
from mint_engine.policies.updates.updates import Updates
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
    """Return a small wave's spec: per step two prompts with four completions of eight tokens, rewarded by length."""
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
    """The engine under test, and the wave that the placement map would assign to it."""

    server: EngineServer
    residency: Residency
    roster: Roster
    context: TrainingContext
    store: Source
    wave: WaveTraining

    @property
    def slots(self) -> Slots:
        return self.server.slots

    @property
    def updates(self) -> Updates:
        assert self.server._updates is not None
        return self.server._updates

    @property
    def stepper(self) -> Stepper:
        assert self.server._services.parts is not None
        return self.server._services.parts.stepper

    def want(self, *assignments: TrainAssignment, told: Train | None = None) -> None:
        if told is not None:
            self.wave = msgspec.structs.replace(self.wave, train=told)
        self.roster.want({WAVE: self.wave}, {each.policy: each for each in assignments})

    async def ended(self, *policies: str, stage: Stage = Stage.COMPLETE) -> Mapping[str, Progress]:
        """Wait until all of these policies have reached `stage`, and return the progress.

        Raises AssertionError if one fails terminally, unless `stage` is FAILED.
        """

        def look() -> bool:
            told = self.roster.progress()
            for policy in policies:
                failure = told[policy].failure
                if failure is not None and failure.terminal and stage is not Stage.FAILED:
                    raise AssertionError(failure)
            return all(told[policy].stage is stage for policy in policies)

        await until(look)
        return self.roster.progress()

    async def complete(self, policy: str, **terms: Any) -> Progress:
        """Want one policy (see `assignment`), and no other; wait until it is complete, and return its progress."""
        self.want(assignment(policy, **terms))
        return (await self.ended(policy))[policy]

    async def failed(self, policy: str) -> Failure:
        """Wait until a policy has failed; return why."""
        failure = (await self.ended(policy, stage=Stage.FAILED))[policy].failure
        assert failure is not None
        return failure


class Gate:
    """Blocks threads in `go_by` after the first `after` passes, until it is opened or the `with` block ends."""

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
    """Run a training engine; at the end, assert that its memory accounting balances and no slot is still in use.

    `clock` times the leases. By default it stands still and leases never expire: no map renews them here, and the
    machine may be slow.
    """
    store = Source(f"file://{folder}/runs")
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"training_store": store, "host_bytes": 64 << 20, "device_slots": 10}
    server = await listen(settings_for(base, **(options | settings)), engine, 0)
    disk = DiskTier(folder / "disk", 64 << 20)

    def make(loaded: Base, slots: Slots) -> Residency:
        loader = Loader(disk, Fit(slots.modules, slots.max_rank), slots.dtype)
        host = HostTier(server._settings.host_bytes, pinned=slots.device.type == "cuda")
        adapters, device = Source(f"file://{folder}/adapters"), server.policy_device(loaded)
        return Residency(slots, loader, host, store=adapters, policy_gpu=device)

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
    """Make the step thread pass the gate each time it has an epoch's gradients, before the optimizer steps."""
    updates = scene.updates
    end = updates._end

    def held_up(work: Work) -> None:
        gate.go_by()
        end(work)

    updates._end = held_up  # type: ignore[method-assign]


async def weights(scene: Scene, policy: str) -> bytes:
    """Return the raw bytes of a policy's current weights."""
    return await scene.context.step_thread.call(lambda trainer: trainer.policy(policy).weights.numpy().tobytes())


def saved(scene: Scene, policy: str) -> tuple[tuple[float, ...], bytes]:
    """Return the rewards and the state of a policy's newest checkpoint."""
    found = Checkpoints(store_of(scene.store), policy).newest()
    assert found is not None
    return found[0].rewards, found[1]


def began(logs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the steps at which courses began to train, according to the log."""
    return [each["step"] for each in logs if each["event"] == "training"]


async def whole(base: Path, folder: Path, policy: str, **changes: Any) -> tuple[tuple[float, ...], bytes]:
    """Return the rewards and state that a course ends with if it is not disturbed."""
    async with training(base, folder, train(**changes)) as scene:
        await scene.complete(policy)
        return saved(scene, policy)
