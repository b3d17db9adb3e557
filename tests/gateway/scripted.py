"""Scripted engines: they speak the real Sampler contract over real sockets and report to a real Redis."""

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc
from redis.asyncio import Redis

from mint_contracts import engine_pb2, engine_pb2_grpc, sampling_pb2, sampling_pb2_grpc, training_pb2_grpc
from mint_contracts.errors import MintError, SourceUnavailable
from mint_contracts.map_reporter import MapReporter
from mint_contracts.records import EngineRecord, Failure, Held, Tier
from mint_contracts.source import Source
from mint_contracts.transport import SERVER_OPTIONS
from mint_contracts.wire import to_status
from tests.engine_views import engine_record
from tests.gateway.scripted_trainer import ROOM, ScriptedTrainer
from tests.redis_process import free_port

HEARTBEAT_S = 1.0
_incarnations = itertools.count(1)


class ScriptedEngine(sampling_pb2_grpc.SamplerServicer, engine_pb2_grpc.EngineServicer):
    """One scripted engine. Its attributes set how it behaves and record what it saw."""

    def __init__(self, base: str, name: str) -> None:
        self.base, self.name = base, name
        self.words: Sequence[str] = ("Hello", " there", ".")
        self.repeats = False  # whether to send the prompt first
        self.calls = sampling_pb2.Chat.CALLS_UNSPECIFIED  # the format of its base's function calls
        self.refuse: MintError | None = None  # the error with which it answers every request
        self.hold_before: asyncio.Event | None = None  # awaited before the first token
        self.hold_after: int | None = None  # the number of words after which it hangs
        self.base_source = ""  # if set, it can go on with answers that others began over the same base
        self.seen: list[sampling_pb2.GenerateRequest] = []
        self.remaining_s: list[float | None] = []  # each request's deadline
        self.started, self.cancelled = asyncio.Event(), asyncio.Event()
        self.ready, self.running = True, 0
        self.reported_full = self.map_version = 0
        self.failure: Failure | None = None
        self.trainer: ScriptedTrainer | None = None  # to be set before it starts
        self.held: dict[str, Held] = {}
        self.stored: set[str] | None = None  # what its base's store has; None: it does not answer
        self.before_stores = False  # whether it is of a version that does not know that call
        self.looked: list[str] = []  # names that it was asked to look for in the store
        self.address = ""
        self._incarnation, self._sequence = next(_incarnations), 0
        self._server: grpc.aio.Server | None = None
        self._reporter: MapReporter | None = None
        self._beating: asyncio.Task[None] | None = None

    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: sampling_pb2.GenerateRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        self.seen.append(request)
        self.remaining_s.append(context.time_remaining())
        try:
            if self.refuse:
                await context.abort_with_status(to_status(self.refuse))
            started = sampling_pb2.Started(engine=self.name, base_model=self.base, adapter=request.adapter)
            held = self.held.get(request.adapter)
            started.request_id, started.revision = request.request_id, held.revision if held else ""
            started.calls, started.base_source = self.calls, self.base_source
            started.goes_on = self.base_source != "" and request.HasField("begun")
            started.prompt_tokens = len(request.text or request.tokens.ids)
            await context.write(sampling_pb2.GenerateEvent(started=started))
            self.started.set()
            if self.hold_before:
                await self.hold_before.wait()
            for index in range(max(1, request.sampling.n)):
                if not started.goes_on or not request.begun.completions[index].finished:
                    await self._complete(context, index, request)
        except (asyncio.CancelledError, grpc.aio.InternalError):  # the latter if the client leaves during a write
            self.cancelled.set()
            raise

    async def _complete(
        self, context: "grpc.aio.ServicerContext[Any, Any]", index: int, request: sampling_pb2.GenerateRequest
    ) -> None:
        """Send one completion: its words (prefixed by its index if that is not 0), and routes if requested."""
        prompt = request.text or list(request.tokens.ids)
        words = (str(prompt), *self.words) if self.repeats else self.words
        had = request.begun.completions[index].token_ids if self.base_source and request.HasField("begun") else ()
        for number, word in enumerate(words, start=index * len(words)):
            if number in had:
                continue
            if number == self.hold_after:
                await self.hang(context)
            chunk = sampling_pb2.Chunk(text=f"{index or ''}{word}", token_ids=[number], index=index)
            await context.write(sampling_pb2.GenerateEvent(chunk=chunk))
        for first in (0, 1) if request.sampling.routes else ():
            routes = sampling_pb2.Routes(version=1, first_token=first, tokens=1, experts=bytes([index]))
            routed = sampling_pb2.Routed(routes=routes, index=index)
            await context.write(sampling_pb2.GenerateEvent(routed=routed))
        finished = sampling_pb2.Finished(
            reason=sampling_pb2.Finished.STOP,
            prompt_tokens=len(prompt),
            completion_tokens=len(words),
            index=index,
            cached_tokens=len(prompt) // 2,
        )
        await context.write(sampling_pb2.GenerateEvent(finished=finished))

    async def hang(self, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        await asyncio.Event().wait()

    async def LookForAdapter(  # noqa: N802
        self, request: engine_pb2.LookForAdapterRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> engine_pb2.LookForAdapterResponse:
        self.looked.append(request.adapter)
        if self.before_stores:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        if self.stored is None:
            await context.abort_with_status(to_status(SourceUnavailable("store", "does not answer")))
            raise AssertionError("abort raises")
        return engine_pb2.LookForAdapterResponse(found=request.adapter in self.stored)

    async def GetInfo(  # noqa: N802
        self, request: engine_pb2.GetInfoRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> engine_pb2.EngineInfo:
        return engine_pb2.EngineInfo(engine=self.name, base_model=self.base, ready=self.ready)

    async def ListAdapters(  # noqa: N802
        self, request: engine_pb2.ListAdaptersRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> engine_pb2.ListAdaptersResponse:
        return engine_pb2.ListAdaptersResponse(adapters=[engine_pb2.AdapterState(adapter=each) for each in self.held])

    async def start(self, redis: Redis) -> None:
        """Listen, report, and keep sending heartbeats."""
        await self.listen()
        self._reporter = MapReporter(redis, self.base, self.name)
        await self.report()
        self._beating = asyncio.create_task(self._beat())

    async def listen(self) -> None:
        """Start serving, on the same port as before if there was one."""
        self._server = grpc.aio.server(options=list(SERVER_OPTIONS))
        sampling_pb2_grpc.add_SamplerServicer_to_server(self, self._server)
        engine_pb2_grpc.add_EngineServicer_to_server(self, self._server)
        if self.trainer is not None:
            training_pb2_grpc.add_TrainerServicer_to_server(self.trainer, self._server)
        self.address = self.address or f"127.0.0.1:{free_port()}"
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def hold(self, adapter: str, source: str, tier: Tier, failure: Failure | None = None) -> None:
        """Report that it holds the adapter in that tier, or failed to load it."""
        revision = "" if failure else f"sha256:{self.name}-{adapter}"
        self.held[adapter] = Held(adapter, Source(source), tier, revision=revision, failure=failure)
        await self.report()

    async def report(self) -> None:
        """Send a full report to the map."""
        assert self._reporter
        self._sequence += 1
        await self._reporter.report(self.record(), list(self.held.values()), [], full=True)
        self.reported_full += 1

    async def deafen(self) -> None:
        """Stop serving as a killed process does: connections are reset, and the map is not told."""
        if self._server:
            await self._server.stop(None)
            self._server = None

    async def silence(self) -> None:
        """Stop the heartbeats."""
        if self._beating:
            self._beating.cancel()
            with suppress(asyncio.CancelledError):
                await self._beating
            self._beating = None

    async def leave(self) -> None:
        """Leave the map, as after a drain; the server keeps running."""
        await self.silence()
        assert self._reporter
        await self._reporter.leave()

    async def stop(self) -> None:
        await self.silence()
        await self.deafen()

    async def _beat(self) -> None:
        assert self._reporter
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            with suppress(MintError):
                record = self.record()
                known = await self._reporter.report(record, [], [], full=False, over=record.sequence)
                if not known:
                    await self.report()

    def record(self) -> EngineRecord:
        """Return its current record."""
        return engine_record(
            self.name,
            address=self.address,
            incarnation=self._incarnation,
            ready=self.ready,
            slots_used=len(self.held),
            running=self.running,
            map_version=self.map_version,
            sequence=self._sequence,
            failure=self.failure,
            policy_room=ROOM if self.trainer is not None else None,
        )
