"""The gRPC services of one engine: Sampler streams completions, Engine reports the engine's state."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grpc
import msgspec
import structlog

from mint_contracts import engine_pb2, engine_pb2_grpc, sampling_pb2, sampling_pb2_grpc
from mint_contracts.byte_budget import ByteShare
from mint_contracts.errors import (
    BaseModelNotFound,
    Draining,
    EngineUnavailable,
    InvalidRequest,
    MintError,
    SourceNotFound,
)
from mint_contracts.names import check_adapter, check_asked
from mint_contracts.records import Tier
from mint_contracts.settings import EngineSettings
from mint_contracts.source import Source, child
from mint_contracts.wire import to_status
from mint_engine.model.base import Base
from mint_engine.model.routes import RouteShape
from mint_engine.requests import prompt_logprobs, routed
from mint_engine.requests.answers import Served, answer
from mint_engine.requests.begun import base_source, count_left, leave_out_prompt, read_begun
from mint_engine.requests.channels import read_channels
from mint_engine.requests.compiling import Compiling
from mint_engine.requests.grammar import Grammars
from mint_engine.requests.inbox import OWN_UNREAD, Inbox, budget
from mint_engine.requests.offsets import prompt_offsets
from mint_engine.requests.parameters import check_prompt_logprobs, read_sampling
from mint_engine.requests.prompts import read_form, read_prompt
from mint_engine.requests.reading import Reading
from mint_engine.requests.request import CheckedRequest
from mint_engine.requests.spelling import Spelling
from mint_engine.requests.tally import Tally
from mint_engine.requests.thoughts import ahead, read_thought
from mint_engine.residency.holding import Holder
from mint_engine.residency.slots import Slots
from mint_engine.scheduling.life import run_request
from mint_engine.scheduling.request import Party
from mint_engine.scheduling.stepper import Stepper
from mint_engine.sources.looking import look_for

STALL_S = 300.0  # a step that takes longer has hung

_LONGEST = {"request_id": 128, "cache_salt": 256, "client": 256}  # characters
_LOADING_RETRY_S, _DRAINING_RETRY_S = 5.0, 1.0

_Context = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Parts:
    """The parts that answer requests once the base is loaded."""

    base: Base
    context_length: int
    slots: Slots
    holder: Holder
    stepper: Stepper
    compute: str  # see Forward.compute
    routes: RouteShape | None  # the shape of the base's routes, whether or not they are kept
    grammars: Grammars

    @cached_property
    def spelling(self) -> Spelling:
        """The spelling of the base's tokens."""
        return Spelling(self.base.tokenizer)


class Services(sampling_pb2_grpc.SamplerServicer, engine_pb2_grpc.EngineServicer):
    """Both services. Owned by the event loop."""

    def __init__(self, settings: EngineSettings, engine: str) -> None:
        self._settings = settings
        self.engine = engine
        self._base_source = base_source(settings.source)
        self._prompts = Reading(f"engine {engine}")
        self._shapes = Compiling(f"engine {engine}")
        self._unread = budget(f"engine {engine}")
        self._scored = prompt_logprobs.budget(f"engine {engine}")
        self._taken: set[asyncio.Future[None]] = set()  # requests being read, and later their lives
        self.parts: Parts | None = None  # None until the base is loaded
        self.draining = False
        self.lost = asyncio.Event()  # a rank or the device was lost: this engine cannot continue

    @property
    def ready(self) -> bool:
        """Whether the engine answers a request sent now."""
        return self.parts is not None and not self.draining and not self.stalled and not self.lost.is_set()

    @property
    def stalled(self) -> bool:
        """Whether a step has hung."""
        return self.parts is not None and self.parts.stepper.stalled_s() > STALL_S

    async def finish(self, timeout_s: float) -> bool:
        """Wait until every accepted request has ended; return False if the time is up before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._taken:
                    await asyncio.wait(set(self._taken))
        return not self._taken

    async def Generate(  # noqa: N802 - the name is the proto's
        self, request: sampling_pb2.GenerateRequest, context: _Context
    ) -> AsyncIterator[sampling_pb2.GenerateEvent]:
        """Stream a request's completions."""
        tally = Tally()
        life: asyncio.Task[None] | None = None
        scored = self._scored.share()
        try:
            parts = self._open()
            leave_out_prompt(request)
            with self._reading():
                asked = await self._read(request, parts, scored)
            unread = self._unread.share(OWN_UNREAD * asked.sampling.n, asked.client)
            with closing(Inbox(unread)) as inbox:
                life = asyncio.create_task(run_request(asked, parts.holder, parts.stepper, inbox))
                self._taken.add(life)
                life.add_done_callback(self._taken.discard)
                served = Served(self.engine, self._settings.base_model, self._base_source)
                async for event in answer(asked, inbox, served, parts.spelling):
                    tally.count(event, asked)
                    yield event
        except MintError as error:
            tally.outcome = error.reason
            fields = {"request_id": request.request_id[: _LONGEST["request_id"]], "adapter": request.adapter[:200]}
            _log.info("request_failed", **fields, reason=error.reason, message=str(error))
            await context.abort_with_status(to_status(error))
        finally:
            if life is not None and tally.outcome == "cancelled":
                life.cancel()
            scored.fill(0)
            tally.close()

    async def GetInfo(  # noqa: N802
        self, request: engine_pb2.GetInfoRequest, context: _Context
    ) -> engine_pb2.EngineInfo:
        """Return what this engine is and how busy it is."""
        info = engine_pb2.EngineInfo(
            engine=self.engine,
            base_model=self._settings.base_model,
            device=self._settings.device,
            dtype=self._settings.dtype,
            context_length=self._settings.context_length,
            slots_total=self._settings.device_slots,
            max_rank=self._settings.max_rank,
            target_modules=self._settings.target_modules,
            ready=self.ready,
        )
        if self.parts is not None:
            load, states = self.parts.stepper.load, self.parts.holder.states()
            info.architecture = self.parts.base.architecture
            info.compute, info.slots_memory = self.parts.compute, self.parts.slots.retention.value
            info.requests_running, info.requests_waiting = load.running, load.waiting
            info.slots_used = sum(state.residency is Tier.DEVICE for state in states)
            every = {module.leaf for module in self.parts.slots.modules.values()}
            info.target_modules[:] = sorted(self._settings.target_modules or every)
        return info

    async def ListAdapters(  # noqa: N802
        self, request: engine_pb2.ListAdaptersRequest, context: _Context
    ) -> engine_pb2.ListAdaptersResponse:
        """Return every adapter that this engine holds or failed to load."""
        states = self.parts.holder.states() if self.parts is not None else []
        return engine_pb2.ListAdaptersResponse(
            adapters=[
                engine_pb2.AdapterState(
                    adapter=state.adapter,
                    revision=state.revision,
                    residency=state.residency,
                    rank=state.rank,
                    requests_in_flight=state.requests_in_flight,
                    failure_reason=state.failure_reason,
                    failure_message=state.failure_message,
                )
                for state in states
            ]
        )

    async def LookForAdapter(  # noqa: N802
        self, request: engine_pb2.LookForAdapterRequest, context: _Context
    ) -> engine_pb2.LookForAdapterResponse:
        """Return whether the base's store has an adapter, whether or not this engine holds it."""
        try:
            check_adapter(request.adapter)
            if self._settings.store is None:
                raise SourceNotFound(f"engine {self.engine}", "has no adapter store")
            found = await look_for(child(self._settings.store, request.adapter), "requests")
        except MintError as error:
            await context.abort_with_status(to_status(error))
            raise  # unreachable: abort raises
        return engine_pb2.LookForAdapterResponse(found=bool(found))

    def _open(self) -> Parts:
        subject = f"engine {self.engine}"
        if self.draining:
            raise Draining(subject, "is shutting down; ask another engine", retry_after_s=_DRAINING_RETRY_S)
        if self.parts is None:
            raise EngineUnavailable(subject, "is still loading its base model", retry_after_s=_LOADING_RETRY_S)
        return self.parts

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Count a request as taken while it is read; its life must be created right after, without an await."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._taken.add(ended)
        try:
            yield
        finally:
            self._taken.discard(ended)
            ended.set_result(None)

    async def _read(self, request: sampling_pb2.GenerateRequest, parts: Parts, scored: ByteShare) -> CheckedRequest:
        """Read and check all that needs no adapter; reserve room in `scored` for the prompt's log-probabilities."""
        if request.base_model not in {"", self._settings.base_model}:
            subject = f"base model {request.base_model[:300]!r}"
            raise BaseModelNotFound(subject, f"is not served here; this is {self._settings.base_model}")
        for field, longest in _LONGEST.items():
            if len(getattr(request, field)) > longest:
                raise InvalidRequest(field, f"has more than {longest} characters")
        adapter = check_asked(request.adapter) if request.adapter else ""
        vocabulary = parts.base.vocab_size
        # Refused before the prompt costs anything.
        wanted = read_sampling(request.sampling, parts.context_length, vocabulary)
        if request.sampling.routes:
            routed.check_kept(parts.routes, kept=self._settings.training_store is not None)
        left = count_left(request, wanted.n)
        parts.stepper.check_room(Party(adapter, background=False, client=request.client), left)
        tokenizer, context_length = parts.base.tokenizer, parts.context_length
        nbytes = 0 if request.HasField("tokens") else request.ByteSize()
        client, prompts = request.client, self._prompts
        prompt = await prompts.run(nbytes, client, read_prompt, request, tokenizer, vocabulary, context_length)
        sampling = read_sampling(request.sampling, context_length - len(prompt), vocabulary)
        calls = read_form(request.chat, tokenizer)
        if calls != request.chat.calls:  # stops for calls in that form may be in the arguments of others
            sampling = msgspec.structs.replace(sampling, answer_stop=())
        check_prompt_logprobs(len(prompt), sampling)
        scored.fill(prompt_logprobs.weigh(len(prompt), sampling))
        if request.sampling.routes and parts.routes is not None:
            routed.check_room(parts.routes, len(prompt) + sampling.max_tokens, sampling.n)
        shape, grammars = sampling.shape, parts.grammars
        channels, markers = parts.base.channels, parts.base.markers
        thought = read_channels(request.chat, prompt, channels, tokenizer)
        thought = thought or read_thought(request.chat, prompt, markers, tokenizer)
        before = channels if thought == sampling_pb2.Started.CHANNELS else ahead(thought, markers)
        grammar = None
        if shape is not None:
            party = client or adapter or self._settings.base_model
            grammar = await self._shapes.run(party, grammars.compile, shape, before)
        source = Source(request.whence.uri, request.whence.revision) if request.HasField("whence") else None
        offsets: tuple[int, ...] = ()
        if sampling.prompt_logprobs:
            offsets = await prompts.run(nbytes, client, prompt_offsets, request, prompt, tokenizer, parts.spelling)
        begun = read_begun(request, sampling, vocabulary, self._base_source)
        return CheckedRequest(
            request_id=request.request_id or uuid.uuid4().hex,
            adapter=adapter,
            prompt=prompt,
            sampling=sampling,
            source=source,
            routes=request.sampling.routes,
            echo=request.sampling.echo,
            offsets=offsets,
            grammar=grammar,
            calls=calls,
            thought=thought,
            salt=request.cache_salt,
            client=client,
            begun=begun,
        )
