"""Forwarding one request: pick, try, go on to the next engine before the first token, wait when all are away."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NoReturn

import grpc
import msgspec

from mint_contracts import sampling_pb2
from mint_contracts.backoff import delay_s
from mint_contracts.errors import (
    BaseModelNotFound,
    Draining,
    EngineUnavailable,
    MapUnavailable,
    MintError,
    Unavailable,
)
from mint_contracts.wire import from_rpc_error
from mint_gateway.channels import Channels
from mint_gateway.choose import Candidate, Now, candidates, refusal
from mint_gateway.explain import silence
from mint_gateway.inflight import InFlight
from mint_gateway.mirror import Mirror
from mint_gateway.resolve import resolve
from mint_gateway.view import MapView

if TYPE_CHECKING:
    Call = grpc.aio.UnaryStreamCall[sampling_pb2.GenerateRequest, sampling_pb2.GenerateEvent]

Send = Callable[[sampling_pb2.GenerateEvent], Awaitable[None]]


class Patience(msgspec.Struct, frozen=True):
    """Bounds on what happens before the first token."""

    tries: int = 20  # calls to engines
    away_s: float = 10.0  # waiting while no engine can answer, in all
    retry_after_s: float = 2.0  # what a client is told then
    first_backoff_s: float = 0.02
    cap_backoff_s: float = 0.5


class Trail(msgspec.Struct):
    """What became of one request, for its log line and the metrics."""

    request_id: str
    base_model: str = ""
    adapter: str = ""
    engine: str = ""
    revision: str = ""
    why: str = ""
    tries: int = 0
    first_token_at: float | None = None  # the event loop's clock


class Router:
    """Routes requests by the mirror's views."""

    def __init__(
        self,
        mirror: Mirror,
        channels: Channels,
        in_flight: InFlight,
        patience: Patience | None = None,
        on_retry: Callable[[MintError], None] = lambda error: None,
    ) -> None:
        self._mirror = mirror
        self._channels = channels
        self._in_flight = in_flight
        self._patience = patience or Patience()
        self._on_retry = on_retry

    def find(self, base: str, adapter: str) -> MapView:
        """The view of the base that these names mean. Raises as `resolve` does, and MapUnavailable before any map."""
        if not self._mirror.ready:
            raise MapUnavailable("gateway", "has not read the placement map yet; retry", retry_after_s=1.0)
        return resolve(self._mirror.views, base, adapter)

    def now(self, view: MapView) -> Now:
        """What the gateway itself knows of the engines of a view."""
        addresses = {name: engine.record.address for name, engine in view.engines.items()}
        counts = self._in_flight.by_address
        return Now(
            in_flight={name: counts[address] for name, address in addresses.items() if address in counts},
            broken=frozenset(name for name, address in addresses.items() if self._channels.broken(address)),
            map_away=self._mirror.away,
        )

    async def generate(
        self, request: sampling_pb2.GenerateRequest, send: Send, *, remaining_s: float | None, trail: Trail
    ) -> None:
        """Answer one request by way of an engine; `remaining_s` is the client's deadline, if it has one.

        Raises MintError for what the gateway says itself, AioRpcError for an engine's own word.
        """
        trail.adapter, trail.base_model = request.adapter, request.base_model
        with self._in_flight.admit():
            trail.base_model = self.find(request.base_model, request.adapter).base
            forwarded = sampling_pb2.GenerateRequest()
            forwarded.CopyFrom(request)
            forwarded.base_model, forwarded.request_id = trail.base_model, trail.request_id
            loop = asyncio.get_running_loop()
            deadline = None if remaining_s is None else loop.time() + remaining_s
            tries = _Tries(self._patience, deadline)
            while True:
                candidate = await self._next(trail, tries)
                trail.engine, trail.why, trail.tries = candidate.engine, candidate.why, tries.count
                with self._in_flight.at(candidate.address):
                    if await self._try(candidate, forwarded, send, tries, trail):
                        return

    async def _next(self, trail: Trail, tries: "_Tries") -> Candidate:
        """The best engine that was not tried in this round; waits for one while patience lasts."""
        if tries.failed:
            await tries.pause()
        while True:
            view = self._mirror.views.get(trail.base_model)
            if view is None:
                raise BaseModelNotFound(f"base model {trail.base_model!r}", "is served no longer")
            now = self.now(view)
            if error := refusal(view, trail.adapter, now):
                raise error
            ranked = candidates(view, trail.adapter, now)
            fresh = [candidate for candidate in ranked if candidate.address not in tries.failed]
            if fresh and tries.count < self._patience.tries:
                tries.count += 1
                return fresh[0]
            tries.raise_what_an_engine_said()
            if tries.count >= self._patience.tries or not await tries.wait():
                raise EngineUnavailable(
                    view.base, silence(view, trail.adapter, now), retry_after_s=self._patience.retry_after_s
                )

    async def _try(
        self,
        candidate: Candidate,
        request: sampling_pb2.GenerateRequest,
        send: Send,
        tries: "_Tries",
        trail: Trail,
    ) -> bool:
        """One engine's try. False: it failed before the first token, and another may do better."""
        async with self._channels.use(candidate.address) as stub:
            call = stub.Generate(request, timeout=tries.remaining_s())
            try:
                try:
                    events = await _until_first_token(call, candidate)
                except grpc.aio.AioRpcError as error:
                    if not _another_may_do_better(error):
                        raise
                    tries.failed[candidate.address] = error
                    self._on_retry(from_rpc_error(error))
                    return False
                trail.first_token_at = asyncio.get_running_loop().time()
                trail.revision = next((e.started.revision for e in events if e.HasField("started")), "")
                await _forward(call, events, send, candidate)
            finally:
                call.cancel()
        return True


class _Tries:
    """How far one request has come with its engines."""

    def __init__(self, patience: Patience, deadline: float | None) -> None:
        self._patience = patience
        self._deadline = deadline
        self._give_up_at: float | None = None
        self._rounds = 0
        self.count = 0
        self.failed: dict[str, grpc.aio.AioRpcError] = {}  # in this round, by address

    def remaining_s(self) -> float | None:
        """Seconds to the client's deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - asyncio.get_running_loop().time())

    async def pause(self) -> None:
        """A moment between two engines, so that a herd spreads."""
        await asyncio.sleep(delay_s(len(self.failed), first_s=self._patience.first_backoff_s, cap_s=0.1))

    def raise_what_an_engine_said(self) -> None:
        """If an engine of this round answered at all, its refusal is better news than "unavailable"."""
        said = [error for error in self.failed.values() if not _lost(error)]
        if said:
            raise min(said, key=lambda error: from_rpc_error(error).retry_after_s or 0.0)

    async def wait(self) -> bool:
        """Wait before a new round; False when patience (or nine tenths of the deadline) is at its end."""
        now = asyncio.get_running_loop().time()
        if self._give_up_at is None:
            remaining = self.remaining_s()
            away_s = self._patience.away_s if remaining is None else min(self._patience.away_s, 0.9 * remaining)
            self._give_up_at = now + away_s
        if now >= self._give_up_at:
            return False
        self._rounds += 1
        self.failed.clear()
        delay = delay_s(self._rounds, first_s=self._patience.first_backoff_s, cap_s=self._patience.cap_backoff_s)
        await asyncio.sleep(min(delay, self._give_up_at - now))
        return True


async def _until_first_token(call: "Call", candidate: Candidate) -> list[sampling_pb2.GenerateEvent]:
    """The events up to the first that carries a token, or the end."""
    events: list[sampling_pb2.GenerateEvent] = []
    while not events or events[-1].HasField("started"):
        event = await call.read()
        if not isinstance(event, sampling_pb2.GenerateEvent):
            _ended_early(candidate)
        events.append(event)
    return events


async def _forward(call: "Call", events: list[sampling_pb2.GenerateEvent], send: Send, candidate: Candidate) -> None:
    """Send what was read and all that follows; a stream that breaks can only be asked anew by the client."""
    for ready in events:
        await send(ready)
    try:
        while not events[-1].HasField("finished"):
            event = await call.read()
            if not isinstance(event, sampling_pb2.GenerateEvent):
                _ended_early(candidate)
            events = [event]
            await send(event)
    except grpc.aio.AioRpcError as error:
        if _lost(error):
            _ended_early(candidate)
        raise


def _ended_early(candidate: Candidate) -> NoReturn:
    raise EngineUnavailable(
        f"engine {candidate.engine!r}", "ended while it was answering; retry the request", retry_after_s=0.5
    ) from None


def _lost(error: grpc.aio.AioRpcError) -> bool:
    """The engine is away, as opposed to having said something."""
    failure = from_rpc_error(error)
    if isinstance(failure, Draining | EngineUnavailable):
        return True
    if type(failure) is Unavailable:  # the transport's own word: no ErrorInfo came with it
        return error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    return error.code() is grpc.StatusCode.INTERNAL and "RST_STREAM" in (error.details() or "")


def _another_may_do_better(error: grpc.aio.AioRpcError) -> bool:
    retryable = not from_rpc_error(error).terminal and error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    return retryable or _lost(error) or error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
