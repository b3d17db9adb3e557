"""Real engines of a tiny base that train by calls, in this process behind a gateway, with a relay before each."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import msgspec
from redis.asyncio import Redis

from mint_contracts.errors import MintError
from mint_contracts.map_reporter import MapReporter
from mint_contracts.records import EngineRecord
from mint_contracts.source import Source
from mint_engine.holdings_link import HoldingsLink
from mint_engine.policies.calls.calls import Calls
from mint_gateway.policy import Policy, example
from tests.engine.training import training_engine
from tests.engine.training.calling import BASE, answer_calls
from tests.engine_views import engine_record
from tests.gateway.scene import Scene
from tests.relay import Relay, relaying
from tests.waiting import until

HEARTBEAT_S = 1.0
LIMIT_S = 60.0  # only a failing test waits this long
LESSON = [example([5], [6, 7, 8])]


class TrainingEngine:
    """One engine. It reports to the map as an engine's process does."""

    def __init__(self, name: str, trains: training_engine.Scene, relay: Relay, redis: Redis) -> None:
        self.name, self.trains, self.relay, self._redis = name, trains, relay, redis
        self.come_back()

    @property
    def calls(self) -> dict[str, Calls]:
        """The policies that it has, by name."""
        return self.trains.server.register._calls

    def record(self) -> EngineRecord:
        address = f"127.0.0.1:{self.relay.port}"
        return engine_record(self.name, address=address, policy_room=self.trains.server.register.room)

    def come_back(self) -> None:
        """Start reporting to the map: the engine appears alive."""
        self._reporter = MapReporter(self._redis, BASE, self.name)
        self._beating = asyncio.create_task(self._beat())

    def _described(self, sequence: int) -> EngineRecord:
        return msgspec.structs.replace(self.record(), sequence=sequence)

    def fall_silent(self) -> None:
        """Report nothing more to the map, which takes the engine for alive for a while."""
        self._beating.cancel()

    async def leave(self) -> None:
        """Leave the map; requests to the engine are still answered."""
        self._beating.cancel()
        with suppress(asyncio.CancelledError):
            await self._beating
        await self._reporter.leave()

    async def end(self) -> None:
        """End as a process does on SIGTERM."""
        await self.trains.server.register.drain(LIMIT_S)
        await self.leave()

    def silent(self) -> AbstractContextManager[None]:
        """Lose its answers during the block."""
        return self._befallen("cut")

    def mute(self) -> AbstractContextManager[None]:
        """Let requests reach it and hold back its answers during the block; its connections then end."""
        return self._befallen("silent")

    @contextmanager
    def _befallen(self, fault: str) -> Iterator[None]:
        self.relay.fault = fault
        try:
            yield
        finally:
            self.relay.heal()

    async def _beat(self) -> None:
        changed, residency = asyncio.Event(), self.trains.residency
        residency.on_change = changed.set
        link = HoldingsLink(self._reporter, self.name, self._described)
        while True:
            changed.clear()
            with suppress(MintError):
                await link.bring(residency.report())
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):  # wait_for can swallow a cancellation before Python 3.12
                    await changed.wait()


NAMES = ("e-0", "e-1")


class School:
    """A gateway with several engines that share a store."""

    def __init__(self, scene: Scene, stack: AsyncExitStack, folder: Path) -> None:
        self.scene, self._stack, self._folder = scene, stack, folder
        self.engines: dict[str, TrainingEngine] = {}

    async def begin(self, base: Path, *names: str) -> None:
        """Start the engines; opening the gateway is left to the scene."""
        await self.scene.base(BASE, trains=True)
        for name in names:
            trains = await self._stack.enter_async_context(
                training_engine.training(base, self._folder / name, engine=name)
            )
            trains.store = Source(f"file://{self._folder}/training")
            (self._folder / "training").mkdir(exist_ok=True)
            await answer_calls(trains, name)
            relay = self._stack.enter_context(relaying(f"127.0.0.1:{trains.server.port}"))
            self.engines[name] = TrainingEngine(name, trains, relay, self.scene.redis)
            self._stack.push_async_callback(self.engines[name].leave)

    async def seen(self, *names: str) -> None:
        """Wait until the gateway sees exactly these engines alive and training."""

        def current() -> bool:
            view = self.scene.gateway.mirror.views.get(BASE)
            engines = view.engines.values() if view else ()
            return {e.name for e in engines if e.available and e.record.policy_room} == set(names)

        await until(current)

    def has(self, policy: str) -> list[str]:
        """Return the engines that have a policy of this name."""
        return [name for name, engine in self.engines.items() if policy in engine.calls]


@asynccontextmanager
async def schooling(scene: Scene, base: Path, folder: Path) -> AsyncIterator[School]:
    """Yield a School of two engines, NAMES, and a gateway that knows them."""
    async with AsyncExitStack() as stack:
        school = School(scene, stack, folder)
        await school.begin(base, *NAMES)
        await scene.open()
        await school.seen(*NAMES)
        yield school


async def learn(policy: Policy) -> float:
    """Take one step; return the gradient's norm, which identifies the policy's state before it."""
    await policy.forward_backward(LESSON, loss="cross_entropy")
    return (await policy.optim_step(learning_rate=1e-2)).grad_norm
