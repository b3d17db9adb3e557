"""Real engines of a tiny base that train by calls, in this process, behind a gateway; a relay before each."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

from redis.asyncio import Redis

from mint_contracts.errors import MintError
from mint_contracts.map_reporter import MapReporter
from mint_contracts.records import EngineRecord
from mint_contracts.source import Source
from mint_engine.policies.calls import Calls
from mint_gateway.policy import Policy, example
from tests.engine.training import teaching
from tests.engine.training.calling import BASE, answer_calls
from tests.gateway.scene import Scene
from tests.relay import Relay, relaying
from tests.waiting import until

HEARTBEAT_S = 1.0
LIMIT_S = 60.0  # only a test that fails waits for it
LESSON = [example([5], [6, 7, 8])]


class TrainingEngine:
    """One of them. It reports to the map as an engine's process does."""

    def __init__(self, name: str, trains: teaching.Scene, relay: Relay, redis: Redis) -> None:
        self.name, self.trains, self.relay, self._redis = name, trains, relay, redis
        self.come_back()

    @property
    def calls(self) -> dict[str, Calls]:
        """The policies that it has, by name."""
        return self.trains.server.register._calls

    def record(self) -> EngineRecord:
        return EngineRecord(
            engine=self.name,
            address=f"127.0.0.1:{self.relay.port}",
            incarnation=1,
            ready=True,
            slots_used=0,
            slots_total=8,
            running=0,
            waiting=0,
            map_version=1,
            sequence=1,
            policy_room=self.trains.server.register.room,
        )

    def come_back(self) -> None:
        """Be alive, as the map has it."""
        self._reporter = MapReporter(self._redis, BASE, self.name)
        self._beating = asyncio.create_task(self._beat())

    async def leave(self) -> None:
        """End, as the map has it; whoever asks it still is answered."""
        self._beating.cancel()
        with suppress(asyncio.CancelledError):
            await self._beating
        await self._reporter.leave()

    async def end(self) -> None:
        """End as a process does that is told to."""
        await self.trains.server.register.part(LIMIT_S)
        await self.leave()

    def silent(self) -> AbstractContextManager[None]:
        """Its answers are lost meanwhile."""
        return self._befallen("cut")

    def mute(self) -> AbstractContextManager[None]:
        """What it is asked reaches it, no answer comes, and in the end its connections are gone."""
        return self._befallen("silent")

    @contextmanager
    def _befallen(self, fault: str) -> Iterator[None]:
        self.relay.fault = fault
        try:
            yield
        finally:
            self.relay.heal()

    async def _beat(self) -> None:
        full = True
        while True:
            with suppress(MintError):
                over = 0 if full else 1
                full = not await self._reporter.report(self.record(), [], [], full=full, over=over)
            await asyncio.sleep(0.0 if full else HEARTBEAT_S)


NAMES = ("e-0", "e-1")


class School:
    """A gateway before so many engines, which share a store."""

    def __init__(self, scene: Scene, stack: AsyncExitStack, folder: Path) -> None:
        self.scene, self._stack, self._folder = scene, stack, folder
        self.engines: dict[str, TrainingEngine] = {}

    async def begin(self, base: Path, *names: str) -> None:
        """Start the engines; the gateway is the scene's to open."""
        await self.scene.base(BASE, trains=True)
        for name in names:
            trains = await self._stack.enter_async_context(teaching.training(base, self._folder / name, engine=name))
            trains.store = Source(f"file://{self._folder}/training")
            (self._folder / "training").mkdir(exist_ok=True)
            await answer_calls(trains, name)
            relay = self._stack.enter_context(relaying(f"127.0.0.1:{trains.server.port}"))
            self.engines[name] = TrainingEngine(name, trains, relay, self.scene.redis)
            self._stack.push_async_callback(self.engines[name].leave)

    async def seen(self, *names: str) -> None:
        """Wait until the gateway has seen that just these engines are alive, and that they train."""

        def current() -> bool:
            view = self.scene.gateway.mirror.views.get(BASE)
            engines = view.engines.values() if view else ()
            return {e.name for e in engines if e.available and e.record.policy_room} == set(names)

        await until(current)

    def has(self, policy: str) -> list[str]:
        """The engines that have a policy of this name."""
        return [name for name, engine in self.engines.items() if policy in engine.calls]


@asynccontextmanager
async def schooling(scene: Scene, base: Path, folder: Path) -> AsyncIterator[School]:
    """Two engines, NAMES, and a gateway that knows them."""
    async with AsyncExitStack() as stack:
        school = School(scene, stack, folder)
        await school.begin(base, *NAMES)
        await scene.open()
        await school.seen(*NAMES)
        yield school


async def learn(policy: Policy) -> float:
    """One step; the gradient's norm, which tells what the policy was."""
    await policy.forward_backward(LESSON, loss="cross_entropy")
    return (await policy.optim_step(learning_rate=1e-2)).grad_norm
