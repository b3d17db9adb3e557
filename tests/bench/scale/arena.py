"""The environment that waves are measured in: a real API server and Redis, an operator process, simulated engines."""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from mint_operator.kube import Kube, connect
from tests.apiserver import ApiServer, serve
from tests.bench.places import LOGS, scratch
from tests.bench.scale.fleet import SLOTS
from tests.bench.side import SideFailed
from tests.redis_process import RedisProcess, free_port

FLEETS = 2  # processes over which the engines are spread
ADAPTERS = 64  # per wave
CATALOG = 1_000_000  # adapters that waves draw from
AT_ONCE = 8  # calls in flight, for our side and for the bare client
POLL_S = 0.02


@dataclass
class Arena:
    """One namespace of the API server, and everything that runs in it."""

    server: ApiServer
    kube: Kube
    redis: RedisProcess
    namespace: str
    engines: int
    operator: subprocess.Popen[bytes]
    metrics_port: int
    fleets: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def base(self) -> str:
        return f"{self.namespace}/smol"

    def figures(self) -> dict[str, float]:
        """Return the operator's metrics; empty before it serves them."""
        if self.operator.poll() is not None:
            raise SideFailed("the operator has ended; see its log")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except urllib.error.URLError:
            return {}
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def rss_mb(self) -> float:
        """Return the operator's resident memory in MiB."""
        for line in Path(f"/proc/{self.operator.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise SideFailed("the operator has ended")

    def writes(self) -> float:
        """Return the number of writes that the API server took for waves: statuses and events."""
        raw = self.server.kubectl("get", "--raw", "/metrics")
        found = 0.0
        for line in raw.splitlines():
            if line.startswith("apiserver_request_total{"):
                status = 'resource="adapterwaves"' in line and 'subresource="status"' in line
                event = 'resource="events"' in line and 'verb="POST"' in line
                if (status and 'verb="PATCH"' in line) or event:
                    found += float(line.rpartition(" ")[2])
        return found

    def kill(self, engine: int) -> None:
        """Make an engine fall silent."""
        fleet = self.fleets[engine * len(self.fleets) // self.engines]
        assert fleet.stdin is not None
        fleet.stdin.write(f"kill smol-{engine}\n")
        fleet.stdin.flush()


@contextmanager
def arena(engines: int) -> Iterator[Arena]:
    """Run everything, with the base model ready on all its engines, for the duration of the block."""
    with ExitStack() as stack:
        folder = stack.enter_context(scratch("scale"))
        server = stack.enter_context(serve(folder))
        redis = stack.enter_context(RedisProcess(folder))
        namespace = server.namespace("scale")
        kube = connect(str(server.kubeconfig))
        stack.callback(kube.close)
        port = free_port()
        operator = stack.enter_context(_operator(server, redis, namespace, port))
        found = Arena(server, kube, redis, namespace, engines, operator, port)
        for fleet in range(FLEETS):
            first, last = fleet * engines // FLEETS, (fleet + 1) * engines // FLEETS
            found.fleets.append(stack.enter_context(_fleet(found, fleet, first, last - first)))
        apply(server, namespace, base_model(engines))
        ready = f'mint_operator_bases{{base="{namespace}/smol",phase="Ready"}}'
        until("the base model to be ready", lambda: found.figures().get(ready) == 1.0)
        until("all engines", lambda: _ready(found) == engines)
        yield found


def _ready(found: Arena) -> int:
    raw = asyncio.run(found.kube.get("BaseModel", found.namespace, "smol"))
    return int(json.loads(raw or b"{}").get("status", {}).get("engines", {}).get("ready", 0))


@contextmanager
def _operator(server: ApiServer, redis: RedisProcess, namespace: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    env = os.environ | {
        "KUBECONFIG": str(server.kubeconfig),
        "MINT_NAMESPACE": namespace,
        "MINT_LEASE": "mint-operator",
        "MINT_WATCH_NAMESPACES": namespace,
        "POD_NAME": "operator",
        "MINT_ENGINE_IMAGE": "mint.dev/host:dev",
        "MINT_REDIS_URL": redis.url,
        "MINT_LIVENESS_PORT": str(free_port()),
        "MINT_METRICS_PORT": str(port),
    }
    LOGS.mkdir(parents=True, exist_ok=True)
    with (
        (LOGS / "scale-operator.log").open("wb") as log,
        subprocess.Popen([sys.executable, "-m", "mint_operator.main"], stdout=log, stderr=log, env=env) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def _fleet(found: Arena, number: int, first: int, count: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.bench.scale.fleet", found.base, str(first), str(count)]
    env = os.environ | {"MINT_REDIS_URL": found.redis.url}
    with (
        (LOGS / f"scale-fleet-{number}.log").open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, stdout=log, env=env, text=True) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def apply(server: ApiServer, namespace: str, *objects: dict[str, Any]) -> None:
    """Run `kubectl apply` for these objects."""
    listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    server.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(listed))


def base_model(engines: int) -> dict[str, Any]:
    return {
        "apiVersion": "mint.dev/v1alpha1",
        "kind": "BaseModel",
        "metadata": {"name": "smol"},
        "spec": {
            "source": {"uri": "pvc://models/smol"},
            "engine": {"replicas": {"min": engines, "max": engines}},
            "adapters": {"deviceSlots": SLOTS, "store": {"uri": "pvc://samples/adapters"}},
            "catalog": {"manifests": {"uri": "pvc://samples/catalog"}},
        },
    }


def adapter(number: int) -> str:
    """Return the name of one of the catalog's adapters; numbers wrap around."""
    return f"acme/support-{number % CATALOG:06d}"


def wave(namespace: str, name: str, first: int) -> dict[str, Any]:
    """Return a wave of ADAPTERS adapters, spread over the catalog from `first` on."""
    step = CATALOG // ADAPTERS
    names = [adapter(first + index * step) for index in range(ADAPTERS)]
    return {
        "apiVersion": "mint.dev/v1alpha1",
        "kind": "AdapterWave",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"baseModelRef": {"name": "smol"}, "adapters": {"names": names}},
    }


async def at_once(work: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """Make all calls, at most AT_ONCE in flight."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(call: Callable[[], Awaitable[object]]) -> None:
        async with gate:
            await call()

    await asyncio.gather(*[one(call) for call in work])


def until(what: str, probe: Callable[[], bool], timeout_s: float = 240.0, poll_s: float = POLL_S) -> float:
    """Wait until `probe` is true, and return the seconds. Raises SideFailed if it takes too long."""
    began = time.perf_counter()
    while not probe():
        waited = time.perf_counter() - began
        if waited > timeout_s:
            raise SideFailed(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(poll_s)
    return time.perf_counter() - began


def decoded(raws: Sequence[msgspec.Raw]) -> list[dict[str, Any]]:
    """Decode the objects of a listing."""
    return [msgspec.json.decode(raw) for raw in raws]
