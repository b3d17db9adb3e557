"""A stage for the operator: a namespace of a real API server, a real Redis, and engines played by the test."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from redis.asyncio import Redis

from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import MapReporter
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import Assignment, Failure, Held, Tier
from mint_contracts.train_reader import TrainReader
from mint_contracts.train_writer import TrainWriter
from mint_operator import kube
from mint_operator.apply import Applier, Maps
from mint_operator.kube import Kube
from mint_operator.loop import Loop
from mint_operator.observing import hints
from mint_operator.observing.cluster_view import ClusterView
from mint_operator.observing.dirt import EVERYTHING, RESYNC_S, Dirt, Part
from mint_operator.observing.feed import Feed
from mint_operator.observing.map_view import MapView
from mint_operator.observing.observe import Observer
from mint_operator.observing.train_inputs import InputsView
from mint_operator.observing.train_view import TrainView
from mint_operator.observing.wave_adapters import WaveAdapters
from mint_operator.observing.wave_lists import Lists
from mint_operator.observing.written import Written
from mint_operator.planning.snapshot import Release
from tests.apiserver import ApiServer
from tests.engine_views import engine_record
from tests.waiting import PATIENCE_S

ADAPTERS = ["demo/json", "demo/pirate", "demo/shout"]
POLL_S = 0.05
RELEASE = Release(
    image="mint.dev/host:dev",
    redis_url="redis://redis.mint.svc:6379/0",
    gateway_namespace="mint",
    gateway_labels={"app.kubernetes.io/name": "mint", "app.kubernetes.io/component": "gateway"},
)

T = TypeVar("T")


@contextmanager
def staged(server: ApiServer, namespace: str, redis: Redis) -> Iterator["Stage"]:
    """Yield a stage in an existing namespace."""
    client = kube.connect(str(server.kubeconfig))
    try:
        yield Stage(server, namespace, client, redis)
    finally:
        client.close()


async def until(what: str, probe: Callable[[], Awaitable[T]]) -> T:
    """Call `probe` until its result is true, and return that result."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = await probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}; last seen: {found!r}"
        await asyncio.sleep(POLL_S)


class PlayedEngine:
    """An engine's side of the map protocol, played through the real reporter."""

    def __init__(self, redis: Redis, base: str, name: str, *, incarnation: int = 1) -> None:
        self._reader = MapReader(redis)
        self._reporter = MapReporter(redis, base, name)
        self._base = base
        self.name = name
        self._incarnation = incarnation
        self._sequence = 0
        self.holds: dict[str, Held] = {}

    async def report(self, *, ready: bool = True, failure: Failure | None = None, **fields: Any) -> None:
        """Send a heartbeat with a full report of everything held."""
        self._sequence += 1
        own = {"incarnation": self._incarnation, "sequence": self._sequence, "slots_used": len(self.holds)}
        self._record = engine_record(self.name, ready=ready, map_version=0, failure=failure, **own, **fields)
        await self._reporter.report(self._record, list(self.holds.values()), [], full=True)

    async def beat(self) -> None:
        """Send a heartbeat, with nothing new since `report`."""
        await self._reporter.report(self._record, [], [], full=False, over=self._sequence)

    async def assigned(self) -> dict[str, Assignment]:
        """Return what the map assigns to this engine."""
        return (await self._reader.part(self._base, self.name)).assigned

    async def obey(self, *, failures: dict[str, Failure] | None = None) -> None:
        """Hold exactly what is assigned, except what fails, and report it."""
        self.holds = {}
        for name, each in (await self.assigned()).items():
            failure = (failures or {}).get(name)
            tier = Tier.REMOTE if failure else each.residency
            self.holds[name] = Held(name, each.source, tier, revision="sha256:0", failure=failure)
        await self.report()

    async def leave(self) -> None:
        """End the heartbeat."""
        await self._reporter.leave()


@dataclass
class Stage:
    """One namespace; `once` runs a pass of an operator that watches it."""

    server: ApiServer
    namespace: str
    kube: Kube
    redis: Redis
    release: Release = RELEASE
    resync_s: float = RESYNC_S
    ahead_s: float = 0.0  # how far the operator's clock is ahead
    loop: Loop = field(init=False)
    dirt: Dirt = field(init=False)
    applier: Applier = field(init=False)
    feed: Feed = field(init=False)

    def __post_init__(self) -> None:
        self.operator(1)

    def operator(self, epoch: int) -> Loop:
        """Replace the operator by a fresh one with this epoch, which remembers nothing."""
        self.dirt, self.feed, written = Dirt(self.resync_s), Feed(), Written()
        writer = MapWriter(self.redis, epoch)
        view = MapView(MapReader(self.redis), writer, [self.namespace])
        secrets, policies = bool(self.release.redis_secret), bool(self.release.gateway_labels)
        cluster = ClusterView(self.kube, [self.namespace], self.feed, written, secrets=secrets, policies=policies)
        training = TrainView(TrainReader(self.redis), look_s=0.0)
        inputs = InputsView(self.kube, self.dirt.wake)
        maps = Maps(writer, view, TrainWriter(self.redis, epoch), training)
        self.applier = Applier(self.kube, maps, self.dirt, self.feed, written)
        adapters = WaveAdapters(Lists(CatalogReader(self.redis), self.dirt.wake, look_s=0.0))
        observer = Observer(cluster, view, training, inputs, adapters, self.release)
        observer.clock = lambda: time.time() + self.ahead_s
        self.loop = Loop(observer, self.applier, self.dirt)
        return self.loop

    @property
    def base(self) -> str:
        return f"{self.namespace}/smol"

    async def once(self, parts: frozenset[Part] = EVERYTHING) -> Counter[str]:
        return await self.loop.once(parts)

    def engine(self, ordinal: int = 0, *, incarnation: int = 1) -> PlayedEngine:
        return PlayedEngine(self.redis, self.base, f"smol-{ordinal}", incarnation=incarnation)

    def apply(self, *objects: dict[str, Any]) -> None:
        """Run `kubectl apply` for these objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.server.kubectl("apply", "-n", self.namespace, "-f", "-", stdin=json.dumps(listed))

    async def reconcile(self, *objects: dict[str, Any]) -> None:
        """`apply` these objects, and run the operator `once`."""
        self.apply(*objects)
        await self.once()

    def delete(self, kind: str, name: str) -> None:
        """Run `kubectl delete` and wait until the object is gone; a finalizer would make this hang."""
        self.server.kubectl("delete", kind, name, "-n", self.namespace, "--timeout=30s")

    def account(self, folder: Path) -> Path:
        """Write to `folder` a kubeconfig of a service account that may only use leases until it is let in."""
        self.kubectl("create", "serviceaccount", "operator")
        self.kubectl("create", "role", "lease", "--verb=get,create,update", "--resource=leases")
        self.kubectl("create", "rolebinding", "lease", "--role=lease", f"--serviceaccount={self.namespace}:operator")
        token = self.kubectl("create", "token", "operator").strip()
        found = folder / "kubeconfig"
        found.write_text(self.server.kubeconfig.read_text().replace(self.server.token, token))
        return found

    def let_in(self, *namespaces: str) -> None:
        """Let the `account` do everything in these namespaces."""
        account = f"--serviceaccount={self.namespace}:operator"
        for each in namespaces:
            self.server.kubectl(
                "create", "rolebinding", "operator", "-n", each, "--clusterrole=cluster-admin", account
            )

    def kubectl(self, *args: str) -> str:
        """Run kubectl in the namespace, and return its output."""
        return self.server.kubectl("-n", self.namespace, *args)

    async def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return an object as decoded JSON, or None."""
        raw = await self.kube.get(kind, self.namespace, name)
        return None if raw is None else msgspec.json.decode(raw)

    async def status(self, kind: str, name: str) -> dict[str, Any]:
        found = await self.get(kind, name)
        return (found or {}).get("status") or {}

    async def condition(self, kind: str, name: str, which: str = "Ready") -> dict[str, Any]:
        conditions = (await self.status(kind, name)).get("conditions", [])
        return next((each for each in conditions if each["type"] == which), {})


def base_model(low: int = 1, high: int = 1, slots: int = 8, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "mint.dev/v1alpha1",
        "kind": "BaseModel",
        "metadata": {"name": "smol"},
        "spec": {
            "source": {"uri": "pvc://models/smol"},
            "engine": {"replicas": {"min": low, "max": high}},
            "adapters": {"deviceSlots": slots, "store": {"uri": "pvc://samples/adapters"}},
        }
        | spec,
    }


def adapter_wave(name: str, adapters: list[str], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "mint.dev/v1alpha1",
        "kind": "AdapterWave",
        "metadata": {"name": name},
        "spec": {"baseModelRef": {"name": "smol"}, "adapters": {"names": adapters}, "serve": {"replicas": 1}} | spec,
    }


HEARTBEAT_S = 0.5


@asynccontextmanager
async def running(stage: Stage, engine: PlayedEngine) -> AsyncIterator[None]:
    """Run the operator's loop with its listener for hints, and an engine that sends heartbeats."""

    async def beat() -> None:
        while True:
            await engine.beat()
            await asyncio.sleep(HEARTBEAT_S)

    work = [stage.loop.run(), hints.follow(stage.redis, stage.dirt), beat()]
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)
