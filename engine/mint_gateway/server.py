"""A complete gateway: mirror, router and the two doors, gRPC and HTTP, started and drained."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import grpc
import msgspec
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from redis.asyncio import Redis

from mint_contracts import (
    catalog_pb2,
    catalog_pb2_grpc,
    placement_pb2,
    placement_pb2_grpc,
    sampling_pb2,
    sampling_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from mint_contracts.awaiting import end_tasks
from mint_contracts.map_reader import MapReader
from mint_contracts.settings import DRAIN_S
from mint_contracts.train_reader import TrainReader
from mint_contracts.transport import GATEWAY_OPTIONS, IDLE_MS, SERVER_OPTIONS
from mint_gateway.answering import Answering
from mint_gateway.arrivals import Arrivals
from mint_gateway.catalog.catalogs import Catalogs
from mint_gateway.catalog.dates import Dates
from mint_gateway.catalog.servicer import CatalogServicer
from mint_gateway.channels import MAX_MESSAGE_BYTES, Channels
from mint_gateway.explainer import Explainer
from mint_gateway.health import Health
from mint_gateway.http.door import Bounds, Door, opened
from mint_gateway.inflight import InFlight
from mint_gateway.metrics import Metrics
from mint_gateway.mirror import Mirror
from mint_gateway.page.answers import Page
from mint_gateway.page.names import Names
from mint_gateway.page.overview import Overview
from mint_gateway.retries import Patience
from mint_gateway.route import Router
from mint_gateway.security.certificate import Certificate, grpc_credentials, http_context
from mint_gateway.security.door_security import DoorSecurity
from mint_gateway.security.mounted import Mounted
from mint_gateway.servicers import PlacementServicer, SamplerServicer
from mint_gateway.trainer.forwarding import Forwarding
from mint_gateway.trainer.servicer import TrainerServicer
from mint_gateway.waves.servicer import WavesServicer
from mint_gateway.waves.watch import WaveWatch

SERVICES = (
    sampling_pb2.DESCRIPTOR.services_by_name["Sampler"].full_name,
    placement_pb2.DESCRIPTOR.services_by_name["Placement"].full_name,
    catalog_pb2.DESCRIPTOR.services_by_name["Catalog"].full_name,
    training_pb2.DESCRIPTOR.services_by_name["Waves"].full_name,
    training_pb2.DESCRIPTOR.services_by_name["Trainer"].full_name,
)
GENERATE = "/mint.v1.Sampler/Generate"

OPEN = DoorSecurity()
MOST_REQUESTS = 2048

_log = structlog.get_logger()


class Limits(msgspec.Struct, frozen=True):
    """A gateway's bounds. Keys share all that are in flight: each has at most as many as it leaves free."""

    requests: int = MOST_REQUESTS  # in flight
    training_calls: int = 256  # in flight, in addition to requests
    watches: int = 256  # in flight, of waves
    calls: int = 256  # in flight, of all others that are not streams
    patience: Patience = Patience()
    connections: int = MOST_REQUESTS  # at each door, so twice what the requests of one of several keys can take
    idle_s: float = IDLE_MS / 1000  # how long a connection may carry nothing
    silence_s: float = 60.0  # how long a client that registers adapters may send nothing
    farewell_s: float = 3.0  # how long to keep accepting while the Service's endpoints drop this pod
    grace_s: float = DRAIN_S  # after that, for requests in flight
    parting_s: float = 1.0  # after that, for clients to learn that theirs has ended; by default in Kubernetes' 30 s


@dataclass(frozen=True)
class Gateway:
    """A running gateway. A task of `lasting` ends only through a defect, and then the gateway should end too."""

    port: int
    http_port: int
    mirror: Mirror
    metrics: Metrics
    lasting: Sequence[asyncio.Task[None]]


@asynccontextmanager
async def serve(
    redis: Redis, address: str, listening: socket.socket, limits: Limits, security: DoorSecurity = OPEN
) -> AsyncIterator[Gateway]:
    """Serve gRPC on `address` ("host:port", port 0 for a free one) and HTTP on `listening` until the block ends.

    Then drain. `security` secures both doors. Health is SERVING once the map has been read for the first time.
    """
    channels, metrics, reader, draining = Channels(), Metrics(), MapReader(redis), asyncio.Event()
    in_flight, calls = InFlight(limits.requests), InFlight(limits.calls, "calls")

    def ready() -> bool:
        return mirror.first_read.is_set() and not draining.is_set()

    mirror = Mirror(reader, on_read=lambda: channels.keep(mirror.addresses), on_outage=metrics.count_outage)
    catalogs = Catalogs(redis, mirror)
    router = Router(mirror, channels, in_flight, catalogs.resolver, limits.patience, metrics.count_retry)
    metrics.observe(lambda: in_flight.total, mirror.age_s, lambda: catalogs.failing)
    answering, healthy = Answering(router, metrics), Health()
    why, watch = Explainer(router, mirror, reader), WaveWatch(TrainReader(redis), mirror, limits.watches)
    forwarding = Forwarding(router, channels, limits.patience)
    catalog = CatalogServicer(router, redis, catalogs, limits.silence_s, calls)
    trainer = TrainerServicer(forwarding, metrics, limits.training_calls, calls)
    services = [
        partial(sampling_pb2_grpc.add_SamplerServicer_to_server, SamplerServicer(answering)),
        partial(placement_pb2_grpc.add_PlacementServicer_to_server, PlacementServicer(router, why, calls)),
        partial(catalog_pb2_grpc.add_CatalogServicer_to_server, catalog),
        partial(training_pb2_grpc.add_WavesServicer_to_server, WavesServicer(watch, calls)),
        partial(training_pb2_grpc.add_TrainerServicer_to_server, trainer),
    ]
    guards, http_guards = security.guards(metrics)
    arrivals = Arrivals({GENERATE: answering.receiving, **trainer.receiving()})
    server = _server(services, healthy, [*guards, arrivals], limits)
    await _be_alive(healthy)
    port = _listen(server, address, security.certificate)
    await server.start()
    page = Page(Overview(mirror, reader, watch), why, watch, Names(mirror, catalogs), forwarding, calls)
    dates = Dates(catalogs.reader, lambda: mirror.away)
    door = Door(answering, router, mirror, ready, dates, calls, page, http_guards)
    context = http_context(security.certificate) if security.certificate else None
    closing_s = limits.grace_s + limits.parting_s
    opening = await opened(door, listening, Bounds(limits.connections, limits.idle_s, closing_s), context)
    http_port = listening.getsockname()[1]
    _log.info("gateway listens", address=address, port=port, http_port=http_port, **security.flags())
    lasting = [opening.accepting, *map(asyncio.create_task, (mirror.run(), catalogs.run(), *security.following()))]
    announcing = asyncio.create_task(_announce(mirror, healthy))
    try:
        yield Gateway(port, http_port, mirror, metrics, lasting)
    finally:
        announcing.cancel()
        draining.set()
        await _set_health(healthy, health_pb2.HealthCheckResponse.NOT_SERVING)
        if in_flight.total:
            _log.info("gateway drains", in_flight=in_flight.total, grace_s=limits.grace_s)
        await asyncio.sleep(limits.farewell_s)
        answering.end_at(asyncio.get_running_loop().time() + limits.grace_s)
        await asyncio.gather(server.stop(closing_s), opening.close())
        await end_tasks(lasting)
        await channels.close()
        _log.info("gateway ended")


def _server(
    services: Iterable[Callable[[grpc.aio.Server], None]],
    healthy: Health,
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    limits: Limits,
) -> grpc.aio.Server:
    """Make the gRPC server; each of `services` adds one to it."""
    options = [
        *SERVER_OPTIONS,
        *GATEWAY_OPTIONS,
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_allowed_incoming_connections", limits.connections),  # any beyond it is closed at once
        ("grpc.max_connection_idle_ms", round(1000 * limits.idle_s)),
        ("grpc.http2.bdp_probe", 0),  # else it takes megabytes of requests before they are read (see `Arrivals`)
    ]
    server = grpc.aio.server(interceptors=interceptors, options=options)
    for add in services:
        add(server)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server


def _listen(server: grpc.aio.Server, address: str, certificate: Mounted[Certificate] | None) -> int:
    if certificate is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, grpc_credentials(certificate))


async def _be_alive(healthy: Health) -> None:
    """Report alive but not ready: the health service itself is SERVING from the start, even without a map."""
    await _set_health(healthy, health_pb2.HealthCheckResponse.NOT_SERVING)
    await healthy.set(health.SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)


async def _announce(mirror: Mirror, healthy: Health) -> None:
    await mirror.first_read.wait()
    await _set_health(healthy, health_pb2.HealthCheckResponse.SERVING)


async def _set_health(healthy: Health, state: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
    for name in ("", *SERVICES):
        await healthy.set(name, state)
