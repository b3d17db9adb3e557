"""One engine: its gRPC server, which listens from the start, and its base once that is loaded.

server = await listen(settings, "smollm2-0", ENGINE_PORT)     # health says NOT_SERVING
holder = await server.load(base_path, lambda base, slots: Residency(slots, ...))
...                                                           # health says SERVING
await server.drain(25.0)
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import grpc
import structlog
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mint_contracts import engine_pb2, engine_pb2_grpc, sampling_pb2, sampling_pb2_grpc, training_pb2_grpc
from mint_contracts.awaiting import end_tasks
from mint_contracts.settings import LIVENESS_SERVICE, EngineSettings
from mint_contracts.transport import ENGINE_OPTIONS, IDLE_MS, SERVER_OPTIONS, TRAINER_OPTIONS
from mint_engine import metrics
from mint_engine.build import Equip, build
from mint_engine.examples.ending import ends_of
from mint_engine.examples.render import Renderer
from mint_engine.model.base import Base
from mint_engine.model.device_memory import full_gpu
from mint_engine.model.experts import route_shape
from mint_engine.model.files import first_line
from mint_engine.model.routes import RouteShape
from mint_engine.parallel.handshake import RanksEndpoint
from mint_engine.policies.calls.register import Register
from mint_engine.policies.calls.service import TrainerService
from mint_engine.policies.rollouts import Rollouts
from mint_engine.policies.training_context import TrainingContext, TrainingResidency
from mint_engine.policies.updates.step_thread import StepThread
from mint_engine.policies.updates.updates import Updates
from mint_engine.requests.grammar import Grammars
from mint_engine.residency.holding import Holder, Tenant
from mint_engine.residency.policy_device import PolicyDevice
from mint_engine.residency.slots import Slots
from mint_engine.scheduling.generation import Generation
from mint_engine.scheduling.scheduler import Limits
from mint_engine.scheduling.stepper import Load, Stepper
from mint_engine.server import Parts, Services
from mint_engine.sources.load_progress import LoadProgress
from mint_engine.training.generic_pass import kept_of
from mint_engine.training.pieces import PIECE_ROWS
from mint_engine.training.trainer import Lead, Trainer

MakeHolder = Callable[[Base, Slots], Holder]

_WATCH_S = 2.0
_STOP_S = 5.0
_RELEASED_S = 1.0  # for a thread that no longer waits for another rank
_SERVICES = (
    sampling_pb2.DESCRIPTOR.services_by_name["Sampler"].full_name,
    engine_pb2.DESCRIPTOR.services_by_name["Engine"].full_name,
)

_log = structlog.get_logger(__name__)


class EngineServer:
    """A listening engine. Made by `listen`; used from the event loop that made it."""

    def __init__(
        self,
        settings: EngineSettings,
        services: Services,
        limits: Limits | None,
        endpoint: RanksEndpoint | None,
    ) -> None:
        self._settings = settings
        self._services = services
        self._limits, self._endpoint = limits, endpoint
        self._health = health.aio.HealthServicer()
        accepts = TRAINER_OPTIONS if settings.training_store is not None else ENGINE_OPTIONS
        self._server = grpc.aio.server(options=[*SERVER_OPTIONS, ("grpc.max_connection_idle_ms", IDLE_MS), *accepts])
        self._watch: asyncio.Task[None] | None = None
        self._generation: Generation | None = None
        self._updates: Updates | None = None
        self._followers_room: int | None = None
        self.register = Register()
        self.port = 0
        self.stopping = False  # the drain's time is up, or everything has ended
        self.lost = services.lost

    @property
    def ready(self) -> bool:
        """Whether the engine answers a request sent now."""
        return self._services.ready

    @property
    def load_now(self) -> Load:
        """The numbers of running and waiting requests."""
        parts = self._services.parts
        return parts.stepper.load if parts is not None else Load(0, 0)

    @property
    def training_bytes(self) -> int:
        """The host memory, in bytes, of policies that train here."""
        return self._updates.trainer.host_bytes if self._updates is not None else 0

    def demand(self, most: int) -> dict[str, float]:
        """Return the smoothed requests in flight of the `most` adapters that have most."""
        parts = self._services.parts
        return parts.stepper.demand(most) if parts is not None else {}

    def follows_arrivals(self) -> bool:
        """Whether a request may begin while its adapter is still being copied to its slot."""
        parts = self._services.parts
        return parts is not None and parts.stepper.follows_arrivals

    def tenants(self) -> frozenset[Tenant]:
        """Return the adapters and revisions that requests in flight expect in their slots."""
        parts = self._services.parts
        return parts.stepper.tenants() if parts is not None else frozenset()

    @property
    def generation(self) -> Generation:
        """The step thread's generation; read it, but do not change it."""
        if self._generation is None:
            raise RuntimeError("the base is not loaded")
        return self._generation

    @property
    def slots(self) -> Slots:
        """The adapter slots."""
        if self._services.parts is None:
            raise RuntimeError("the base is not loaded")
        return self._services.parts.slots

    async def load(self, base_path: Path, make_holder: MakeHolder, progress: LoadProgress | None = None) -> Holder:
        """Load the base and begin to serve. `make_holder` is called with it and the empty slots, on this loop.

        `progress` counts what is read of the base. Raises a MintError if the base cannot be served; may then be
        called again.
        """
        if self._services.parts is not None:
            raise RuntimeError("the base is loaded already")
        trainers, routes, grammars = list[Trainer](), list[RouteShape | None](), list[Grammars]()

        def equip(base: Base, slots: Slots, lead: Lead | None) -> None:
            routes.append(route_shape(base.model))
            grammars.append(Grammars(base.tokenizer, base.eos))
            if self._settings.training_store is not None:
                trainers.append(self._trainer_over(base, slots, lead))
            self._followers_room = lead.room if lead is not None else None

        loop = asyncio.get_running_loop()

        def post(deliver: Callable[[], None]) -> None:
            loop.call_soon_threadsafe(deliver)

        def on_lost() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: everything has ended
                post(self.lost.set)

        base, slots, generation = await self._build(base_path, equip, on_lost, progress)
        try:
            holder = make_holder(base, slots)
        except BaseException:  # other ranks would remain beside those that the next load starts
            await asyncio.to_thread(generation.close)
            raise
        if trainers:
            self._updates = Updates(trainers[0])
            self._updates.defects.computes = generation.check
        stepper = Stepper(generation, post, self._updates)
        stepper.start()
        self._generation = generation
        context, compute = self._settings.context_length, generation.compute
        self._services.parts = Parts(base, context, slots, holder, stepper, compute, routes[0], grammars[0])
        self._watch = asyncio.create_task(self._watch_steps())
        await self._set_health()
        _log.info(
            "base_loaded",
            base_model=self._settings.base_model,
            architecture=base.architecture,
            modules=len(slots.modules),
            pages=generation.scheduler.pages.total,
            slots_memory=slots.retention.value,
        )
        return holder

    async def _build(
        self,
        base_path: Path,
        equip: Equip,
        on_lost: Callable[[], None],
        progress: LoadProgress | None,
    ) -> tuple[Base, Slots, Generation]:
        """Build it as `build` does. Raises CapacityExceeded if the GPU is full before all is there."""
        settings = self._settings
        try:
            return await asyncio.to_thread(
                build, settings, base_path, self._limits, equip, on_lost, endpoint=self._endpoint, progress=progress
            )
        except torch.OutOfMemoryError as error:
            why = first_line(error)
        raise full_gpu(settings, 0, why)  # outside the handler, which keeps the tensors alive

    def _trainer_over(self, base: Base, slots: Slots, lead: Lead | None) -> Trainer:
        settings = self._settings
        return Trainer(
            base,
            slots.modules,
            settings.max_rank,
            next(iter(settings.base_names), ""),
            settings.target_modules,
            lead=lead,
        )

    def policy_device(self, base: Base) -> PolicyDevice | None:
        """Return the GPU's memory for policies, once all else is there; None if no policies are trained on a GPU."""
        if self._settings.training_store is None or base.device.type == "cpu":
            return None
        return PolicyDevice(base.device, kept_of(base), PIECE_ROWS, self._followers_room)

    def training_context(self, residency: TrainingResidency) -> TrainingContext | None:
        """Return the context that policies are trained with; None if this engine only serves."""
        parts, updates = self._services.parts, self._updates
        if parts is None or updates is None:
            return None
        base, wake = parts.base, parts.stepper.wake
        rollouts = Rollouts(parts.stepper, self.generation.scheduler.limits.running, on_idle=wake)
        updates.rollouts = lambda: rollouts.in_flight
        ends = ends_of(base.tokenizer, base.end, base.eos)
        renderer = Renderer(base.tokenizer, base.vocab_size, parts.context_length, ends, base.channels)
        return TrainingContext(
            StepThread(updates, wake), rollouts, parts.slots, residency, renderer, self.register.give_way
        )

    async def refuse(self) -> None:
        """Take no more requests from now on: clients that retry go to other engines."""
        self._services.draining = True
        await self._set_health()

    def check(self) -> None:
        """Check whether the device still computes, after something failed that never should."""
        if self._services.parts is not None:
            self._services.parts.stepper.check()

    def release_training(self) -> None:
        """If a defect has ended the step thread, do at once what would wait for it, e.g. to save policies."""
        parts = self._services.parts
        if parts is not None and parts.stepper.broken and self._updates is not None:
            self._updates.close()

    async def drain(self, timeout_s: float) -> bool:
        """Take no more requests, let the current ones end, then stop. Returns False if some were cut off."""
        await self.refuse()
        finished = await self._services.finish(timeout_s)
        self.stopping = True
        if self._watch is not None:
            await end_tasks([self._watch])
        if self._services.parts is not None:
            await self._end_steps(self._services.parts.stepper)
            finished = await self._services.finish(_STOP_S) and finished
        await self._server.stop(_STOP_S)
        return finished

    async def _end_steps(self, stepper: Stepper) -> None:
        """Stop the step thread, then close what it used; if it waits for another rank, closing releases it."""
        ended = await asyncio.to_thread(stepper.stop, _STOP_S)
        if ended and self._updates is not None:
            self._updates.close()
        if self._generation is not None:
            await asyncio.to_thread(self._generation.close)
        if ended:
            return
        ended = await asyncio.to_thread(stepper.stop, _RELEASED_S)
        _log.error("steps_hung", ended=ended)
        if ended and self._updates is not None:
            self._updates.close()

    async def start(self, port: int) -> None:
        """Listen on `port`; 0 picks a free one. `self.port` is then the actual port."""
        sampling_pb2_grpc.add_SamplerServicer_to_server(self._services, self._server)
        engine_pb2_grpc.add_EngineServicer_to_server(self._services, self._server)
        if self._settings.training_store is not None:
            trainer = TrainerService(self._settings.base_model, self._services.engine, self.register)
            training_pb2_grpc.add_TrainerServicer_to_server(trainer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self.port = self._server.add_insecure_port(f"[::]:{port}")
        await self._set_health()
        await self._server.start()

    async def _set_health(self) -> None:
        serving = health_pb2.HealthCheckResponse.SERVING
        status = serving if self.ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *_SERVICES):
            await self._health.set(name, status)
        # Liveness asks for less than readiness: loading or draining is no reason to be killed, a stuck step is.
        stuck = health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(LIVENESS_SERVICE, stuck if self._services.stalled else serving)

    async def _watch_steps(self) -> None:
        """Keep health and gauges up to date, whether or not the step thread makes progress."""
        while True:
            await asyncio.sleep(_WATCH_S)
            try:
                await self._set_health()
                load = self.load_now
                metrics.RUNNING.set(load.running)
                metrics.WAITING.set(load.waiting)
            except Exception:  # noqa: BLE001 - nobody awaits this task; health must not stay as it is for good
                _log.exception("watch_defect")


async def listen(
    settings: EngineSettings,
    engine: str,
    port: int,
    limits: Limits | None = None,
    endpoint: RanksEndpoint | None = None,
) -> EngineServer:
    """Start an engine's server, which does not serve yet. `engine` is its name, e.g. the pod's."""
    server = EngineServer(settings, Services(settings, engine), limits, endpoint)
    await server.start(port)
    return server
