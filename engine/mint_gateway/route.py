"""Forwarding one request: choose an engine, try it, go on with the next if it fails, wait if all are away."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import msgspec

from mint_contracts import sampling_pb2
from mint_contracts.catalog_calls import retired
from mint_contracts.entries import Entry
from mint_contracts.errors import AdapterNotFound, BaseModelNotFound, EngineUnavailable, MapUnavailable, MintError
from mint_contracts.names import check_base
from mint_contracts.source import Source
from mint_contracts.wire import from_rpc_error
from mint_gateway.begun import Begun
from mint_gateway.catalog.resolver import Resolver
from mint_gateway.channels import Channels
from mint_gateway.choose import Candidate, Now, candidates, refusal
from mint_gateway.explain import why_none_answers
from mint_gateway.inflight import InFlight
from mint_gateway.mirror import Mirror
from mint_gateway.resolve import candidate_bases, choose_base, possible_bases, resolve
from mint_gateway.retries import Patience, Retries, another_may_do_better, is_away
from mint_gateway.security.keys import opaque, sharer
from mint_gateway.security.scope import granted
from mint_gateway.stores import Stores
from mint_gateway.view import MapView, unread

if TYPE_CHECKING:
    Call = grpc.aio.UnaryStreamCall[sampling_pb2.GenerateRequest, sampling_pb2.GenerateEvent]

Send = Callable[[sampling_pb2.GenerateEvent], Awaitable[None]]


class Trail(msgspec.Struct):
    """What happened to one request, for its log line and the metrics."""

    request_id: str
    base_model: str = ""
    adapter: str = ""
    engine: str = ""
    revision: str = ""
    why: str = ""
    tries: int = 0
    lost: int = 0  # engines that were lost after the answer had begun, and others went on with it
    first_token_at: float | None = None  # on the event loop's clock
    source: Source | None = None  # where the catalog has the adapter


class Router:
    """Routes requests by the mirror's views."""

    def __init__(
        self,
        mirror: Mirror,
        channels: Channels,
        in_flight: InFlight,
        catalog: Resolver,
        patience: Patience,
        on_retry: Callable[[MintError], None],
    ) -> None:
        self._mirror = mirror
        self._channels = channels
        self._in_flight = in_flight
        self._catalog = catalog
        self._patience = patience
        self._on_retry = on_retry
        self._stores = Stores(channels, in_flight, self.now)

    def find(self, base: str) -> MapView:
        """Return the view of `base`, or of the only base if it is empty. Raises as `resolve` does.

        Also raises MapUnavailable before the map was read, and for an unknown base while Redis is away.
        """
        with self._as_last_read():
            return resolve(self._mirror.views_in_scope(), base)

    def views(self, base: str) -> list[MapView]:
        """Return the view of `base`, or if it is empty the views of all bases, by name. Raises as `find` does."""
        if base:
            return [self.find(check_base(base))]
        return [view for _, view in sorted(self._mirror.views_in_scope().items())]

    async def locate(self, base: str, adapter: str) -> tuple[MapView, Source | None]:
        """Return the view of the base that these names mean, and the catalog's source of an unplaced adapter.

        An adapter unknown to the catalog may be in the base's store, so its source is None. A retired one raises
        AdapterNotFound, even if its files exist. Otherwise raises as `candidate_bases` and `choose_base` do, and
        MapUnavailable as `find` does, or if a catalog that may decide cannot be read.
        """
        with self._as_last_read():
            view = await self._meant(base, adapter)
        if not adapter or adapter in view.placements or not _may_ask(view, adapter):
            return view, None
        entry = await self._catalog.find(view.base, adapter)
        if entry is not None and entry.retired:
            raise retired(adapter, view.base, "ask for another")
        return view, None if entry is None else entry.source

    async def _meant(self, base: str, adapter: str) -> MapView:
        """Return the view that the names mean; if the map leaves several, ask their catalogs, then their stores.

        A catalog that has never answered here, as that of a new base whose folder cannot be read, decides nothing
        where another base knows the name, or has it in its store: it would hold up the names of all others.
        """
        views = self._mirror.views_in_scope()
        found = candidate_bases(views, base, adapter)
        if len(found) == 1:
            return found[0]
        asked = [view.base for view in found if _may_ask(view, adapter)]
        answers = await asyncio.gather(*(self._catalog.find(each, adapter) for each in asked), return_exceptions=True)
        said, unreadable = dict[str, Entry | None](), list[MapUnavailable]()
        for each, answer in zip(asked, answers, strict=True):
            if isinstance(answer, MapUnavailable) and each not in self._catalog.read:
                unreadable.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                said[each] = answer
        known, storing = possible_bases(found, adapter, said)
        storing = [
            view for view in storing if view.scope.adapter(adapter)
        ]  # else its key is told of no store's names
        if not known and (len(storing) > 1 or (storing and unreadable)):
            storing = await self._stores.having(storing, adapter, elsewhere=bool(unreadable))
        if unreadable and not (known or storing):
            raise unreadable[0]
        return choose_base(views, known or storing, adapter, said)

    @contextmanager
    def _as_last_read(self) -> Iterator[None]:
        """Turn "not found" into MapUnavailable while Redis is away: what is missing may have been added since."""
        try:
            yield
        except (AdapterNotFound, BaseModelNotFound) as error:
            if self._mirror.away:
                raise unread(error.subject) from error
            raise

    def now(self, view: MapView) -> Now:
        """Return what the gateway itself knows about a view's engines."""
        addresses = {name: engine.record.address for name, engine in view.engines.items()}
        counts = self._in_flight.by_address
        return Now(
            in_flight={name: counts[address] for name, address in addresses.items() if address in counts},
            broken=frozenset(name for name, address in addresses.items() if self._channels.broken(address)),
            map_away=self._mirror.away,
        )

    async def generate(
        self,
        request: sampling_pb2.GenerateRequest,
        send: Send,
        begun: Begun,
        *,
        remaining_s: float | None,
        trail: Trail,
    ) -> None:
        """Answer one request through an engine, or through several if they are lost, each from where the last was.

        Modifies `request` and `begun`, the answer so far, and records the outcome in `trail`. `remaining_s` is the
        client's deadline, if it has one.

        Raises MintError for the gateway's own errors and AioRpcError for errors from an engine.
        """
        trail.adapter, trail.base_model = request.adapter, request.base_model
        request.ClearField("begun")
        request.cache_salt, request.client = granted.get().salt(request.cache_salt), opaque(sharer.get())
        with self._in_flight.admit():
            loop = asyncio.get_running_loop()
            deadline = None if remaining_s is None else loop.time() + remaining_s
            view, trail.source = await self.locate(request.base_model, request.adapter)
            trail.base_model = view.base
            retries = Retries(self._patience, deadline)
            while True:
                try:
                    candidate, source = await self._next(trail, retries, going_on=begun.lost != "")
                except (MintError, grpc.aio.AioRpcError) as error:
                    if not begun.lost:
                        raise
                    raise _ended_early(begun.lost) from error
                trail.engine, trail.why, trail.tries = candidate.engine, candidate.why, retries.count
                with self._in_flight.at(candidate.address):
                    _prepare(request, trail, source)
                    if begun.lost:
                        begun.write(request)
                    if await self._try(candidate, request, send, begun, retries, trail):
                        return

    async def _next(self, trail: Trail, retries: Retries, *, going_on: bool) -> tuple[Candidate, Source | None]:
        """Return the best engine not tried in this round, and the adapter's source if the engine must be sent it.

        Waits for an engine while the patience lasts; if the answer is `going_on`, also for those that are full.
        """
        if retries.failed:
            await retries.pause()
        while True:
            view = self._mirror.views_in_scope().get(trail.base_model)
            if view is None:
                raise BaseModelNotFound(f"base model {trail.base_model!r}", "is no longer served")
            if trail.source is None and trail.adapter not in view.placements:  # its wave may have gone meanwhile
                view, trail.source = await self.locate(view.base, trail.adapter)
            view = view.with_source(trail.adapter, trail.source)
            now = self.now(view)
            if error := refusal(view, trail.adapter, now):
                raise error
            ranked = candidates(view, trail.adapter, now)
            fresh = [candidate for candidate in ranked if candidate.address not in retries.failed]
            if fresh and retries.count < self._patience.tries:
                retries.count += 1
                return fresh[0], view.source_for_engine(trail.adapter, fresh[0].engine)
            if not going_on:
                retries.raise_refusal()
            if retries.count >= self._patience.tries or not await retries.wait():
                raise EngineUnavailable(
                    view.base, why_none_answers(view, trail.adapter, now), retry_after_s=self._patience.retry_after_s
                )

    async def _try(
        self,
        candidate: Candidate,
        request: sampling_pb2.GenerateRequest,
        send: Send,
        begun: Begun,
        retries: Retries,
        trail: Trail,
    ) -> bool:
        """Try one engine. Return False if it failed and another may succeed, from where this one was."""
        events: list[sampling_pb2.GenerateEvent] = []
        async with self._channels.use(candidate.address) as stubs:
            call = stubs.sampler.Generate(request, timeout=retries.remaining_s())
            try:
                try:
                    await _read_until_first_token(call, events, candidate)
                except grpc.aio.AioRpcError as error:
                    failure = from_rpc_error(error)
                    # The adapter was placed just now: the engine has not read its part of the map yet.
                    too_early = candidate.behind and isinstance(failure, AdapterNotFound)
                    own = begun.lost != "" and error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
                    if not too_early and not own and not another_may_do_better(error):
                        raise
                    self._on_retry(failure)
                    if too_early:
                        retries.failed[candidate.address] = None
                    else:
                        retries.failed_with(candidate.address, error, trail.request_id, begun=bool(events))
                    return False
                if begun.lost:
                    if not events[0].started.goes_on:  # an engine of a version that would begin anew
                        retries.failed[candidate.address] = None
                        return False
                    del events[0]
                    begun.lost = ""
                else:
                    trail.first_token_at = asyncio.get_running_loop().time()
                    trail.revision = events[0].started.revision
                lost = await _forward(call, events, send, begun)
            finally:
                call.cancel()
        if not begun.complete:
            if not begun.may_go_on:
                raise _ended_early(candidate.engine) from lost
            begun.lost = candidate.engine
            trail.lost += 1
            retries.begin_anew(candidate.address)
            self._note_failure(candidate, lost, retries, trail)
        return begun.complete

    def _note_failure(
        self, candidate: Candidate, error: grpc.aio.AioRpcError | None, retries: Retries, trail: Trail
    ) -> None:
        if error is None:
            retries.failed[candidate.address] = None
            return
        self._on_retry(from_rpc_error(error))
        retries.failed_with(candidate.address, error, trail.request_id, begun=True)


def _may_ask(view: MapView, adapter: str) -> bool:
    """Return whether to ask the base's catalog for the adapter: there is one, and the caller's key opens the name."""
    return view.has_catalog and view.scope.adapter(adapter)


def _prepare(request: sampling_pb2.GenerateRequest, trail: Trail, source: Source | None) -> None:
    """Set the request's names and source for an engine, which may not know the adapter's wave (yet, or any more).

    Modifies the request in place: a copy would keep a long prompt twice until the end of its answer.
    """
    request.base_model, request.request_id = trail.base_model, trail.request_id
    request.ClearField("whence")
    if source is not None:
        request.whence.uri, request.whence.revision = source.uri, source.revision


async def _read_until_first_token(
    call: "Call", events: list[sampling_pb2.GenerateEvent], candidate: Candidate
) -> None:
    """Add events up to the first one other than `started`. Raises EngineUnavailable if the stream ends before."""
    while not events or events[-1].HasField("started"):
        event = await call.read()
        if not isinstance(event, sampling_pb2.GenerateEvent):
            raise _ended_early(candidate.engine)
        events.append(event)


async def _forward(
    call: "Call", events: list[sampling_pb2.GenerateEvent], send: Send, begun: Begun
) -> grpc.aio.AioRpcError | None:
    """Send the `events` already read, and all that follow, and note them in `begun`. Removes what it sends.

    Returns early, with the error if there is one, if the engine is away before the answer is complete.
    """
    while events:  # the log-probabilities of a long prompt would stay in memory until the answer's end
        begun.note(events[0])
        await send(events.pop(0))
    try:
        # Read to the stream's end, not only to Finished: an earlier end would look like a client that disconnected.
        while isinstance(event := await call.read(), sampling_pb2.GenerateEvent):
            begun.note(event)
            await send(event)
    except grpc.aio.AioRpcError as error:
        if not begun.complete and not is_away(error):
            raise
        return error
    return None


def _ended_early(engine: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"engine {engine!r}", "ended while it was answering; retry the request", retry_after_s=0.5
    )
