"""A gateway over a real Redis and scripted engines, all on loopback."""

import itertools
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import BaseRecord, MapChange, Place, Placement, Tier
from mint_contracts.sampling_pb2_grpc import SamplerStub
from mint_contracts.source import Source
from mint_gateway.client import Client
from mint_gateway.dialling import Trust
from mint_gateway.http.door import listen
from mint_gateway.retries import Patience
from mint_gateway.security.door_security import DoorSecurity
from mint_gateway.server import OPEN, Gateway, Limits, serve
from tests.gateway.scripted import ScriptedEngine
from tests.gateway.scripted_trainer import ScriptedTrainer
from tests.redis_process import free_port
from tests.waiting import until

if TYPE_CHECKING:
    from mint_contracts.sampling_pb2_grpc import SamplerAsyncStub

BASE = "demo/smollm2"
CREATED = 1_767_225_600
STORE = "file:///adapters"
PIRATE = f"{STORE}/demo/pirate"
LIMIT_S = 60.0  # only a failing test waits this long
LIMITS = Limits(requests=64, patience=Patience(away_s=1.5), farewell_s=0.0, grace_s=2.0)
PATIENT = msgspec.structs.replace(LIMITS, patience=Patience(tries=1000, away_s=LIMIT_S), grace_s=LIMIT_S)


class Scene:
    """A gateway, its Redis, its engines and a client, for one test."""

    def __init__(self, redis: Redis, stack: AsyncExitStack) -> None:
        self.redis, self._stack = redis, stack
        self.writer = MapWriter(redis, epoch=1)
        self.versions: dict[str, int] = {}
        self.gateway: Gateway
        self.client: Client

    async def open(
        self,
        limits: Limits = LIMITS,
        security: DoorSecurity = OPEN,
        trust: Trust | None = None,
        key: str = "",
    ) -> None:
        """Start the gateway, and a client that does not retry."""
        door = listen("127.0.0.1", free_port())  # a port that nothing else takes, also if the gateway restarts
        serving = serve(self.redis, "127.0.0.1:0", door, limits, security)
        self.gateway = await self._stack.enter_async_context(serving)
        self.client = await self._stack.enter_async_context(Client(self.target, patience_s=0.0, trust=trust, key=key))

    async def begin(self, *engines: ScriptedEngine, **options: Any) -> None:
        """`open`, and wait until the gateway has seen everything written, and what these engines reported."""
        await self.open(**options)
        await self.seen(*engines)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.gateway.port}"

    @property
    def url(self) -> str:
        """The URL of its HTTP door."""
        return f"http://127.0.0.1:{self.gateway.http_port}"

    def stub(self) -> "SamplerAsyncStub":
        """Return a bare gRPC stub, to see what goes over the wire."""
        channel = grpc.aio.insecure_channel(self.target)
        self._stack.push_async_callback(channel.close)
        return SamplerStub(channel)

    async def base(self, name: str = BASE, store: str | None = None, *, trains: bool = False) -> None:
        """Declare a base model, as the operator does."""
        known = Source(store) if store else None
        record = BaseRecord(base_model=name, store=known, created=CREATED, trains=trains)
        self.versions[name] = await self.writer.apply(name, MapChange(base=record))

    async def place(self, adapter: str, *engines: str, base: str = BASE, source: str = "") -> None:
        """Place an adapter on engines, as the operator does."""
        places = tuple(Place(engine, Tier.DEVICE, "spread") for engine in engines)
        placement = Placement(adapter, Source(source or f"{STORE}/{adapter}"), ("demo/wave",), places)
        self.versions[base] = await self.writer.apply(base, MapChange(set_placements=(placement,)))

    async def unplace(self, adapter: str) -> None:
        """Undo `place`."""
        self.versions[BASE] = await self.writer.apply(BASE, MapChange(del_placements=(adapter,)))

    async def place_many(self, adapters: Sequence[str], engines: Sequence[str]) -> None:
        """Place adapters, each on one of the engines in turn."""
        placements = [
            Placement(each, Source(f"{STORE}/{each}"), ("demo/wave",), (Place(engine, Tier.DEVICE, "spread"),))
            for each, engine in zip(adapters, itertools.cycle(engines), strict=False)
        ]
        self.versions[BASE] = await self.writer.apply(BASE, MapChange(set_placements=tuple(placements)))

    async def engine(
        self, name: str, base: str = BASE, *, trains: bool = False, kind: type[ScriptedEngine] = ScriptedEngine
    ) -> ScriptedEngine:
        """Start a scripted engine."""
        engine = kind(base, name)
        engine.trainer = ScriptedTrainer() if trains else None
        await engine.start(self.redis)
        self._stack.push_async_callback(engine.stop)
        return engine

    async def with_engine(self, limits: Limits = LIMITS, store: str | None = None, **options: Any) -> ScriptedEngine:
        """Declare a base, start one engine, and open a gateway that has seen it."""
        await self.base(store=store)
        engine = await self.engine("e-0")
        await self.begin(engine, limits=limits, **options)
        return engine

    async def with_holder(self) -> tuple[ScriptedEngine, ScriptedEngine]:
        """As `with_engine`, with two: return one that holds demo/pirate, so that it is asked first, and another."""
        await self.base(store=STORE)
        holder, other = await self.engine("e-0"), await self.engine("e-1")
        await holder.hold("demo/pirate", PIRATE, Tier.DEVICE)
        await self.begin(holder, other)
        return holder, other

    async def seen(self, *engines: ScriptedEngine) -> None:
        """Wait until the gateway has seen everything written and reported so far."""

        def current() -> bool:
            views = self.gateway.mirror.views
            if any(base not in views or views[base].version != version for base, version in self.versions.items()):
                return False
            for engine in engines:
                known = views[engine.base].engines.get(engine.name)
                if known is None or not known.alive or known.record != engine.record():
                    return False
            return True

        await until(current)


async def complete(redis: Redis, base: str = BASE) -> None:
    """Wait until a gateway has read the base's catalog."""

    async def look() -> bool:
        return await redis.hget(keys.catalog(base), "complete") == "1"

    await until(look)
