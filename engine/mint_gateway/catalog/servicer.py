"""The gateway's Catalog service."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import structlog
from redis.asyncio import Redis

from mint_contracts import catalog_pb2, catalog_pb2_grpc
from mint_contracts.byte_budget import ByteBudget
from mint_contracts.catalog_calls import retired
from mint_contracts.catalog_parts import Parts
from mint_contracts.catalog_reader import PAGE_MAX
from mint_contracts.catalog_writer import CatalogWriter
from mint_contracts.entries import Entry, check_labels
from mint_contracts.errors import AdapterNotFound, CatalogNotFound, InvalidRequest, Overloaded, PermissionDenied
from mint_contracts.names import check_adapter, check_asked, check_base
from mint_contracts.paging import page_size
from mint_contracts.records import BaseRecord
from mint_contracts.source import Source
from mint_gateway.catalog.catalogs import Catalogs
from mint_gateway.catalog.listing import page_of
from mint_gateway.catalog.pace import Pace
from mint_gateway.catalog.registration import Registration
from mint_gateway.catalog.writable import Writable
from mint_gateway.field_count import memory
from mint_gateway.inflight import InFlight
from mint_gateway.route import Router
from mint_gateway.security.keys import caller, sharer
from mint_gateway.security.scope import OUT_OF_SCOPE, granted
from mint_gateway.servicers import answered

STREAMS = 4  # registering at the same time
OF_ONE_KEY = STREAMS - 1  # of one key at the same time, so that one stream is always left for other keys
RETIRED_AT_ONCE = 10_000
MOST_RETIRING = 16 << 20  # bytes of calls in flight
PAGE = 100

_Context = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger()


class CatalogServicer(catalog_pb2_grpc.CatalogServicer):
    """Registers, lists, resolves and retires adapters of bases that have a catalog."""

    def __init__(self, router: Router, redis: Redis, catalogs: Catalogs, silence_s: float, calls: InFlight) -> None:
        """`silence_s` is the `Pace` of a registering client, because it occupies one of the few streams.

        `calls` counts and bounds all other calls, together with those of other services.
        """
        self._router, self._calls = router, calls
        self._silence_s = silence_s
        self._catalogs = catalogs
        self._writer = CatalogWriter(redis)
        self._registering: Counter[str] = Counter()  # streams by key name
        self._retiring = ByteBudget(MOST_RETIRING, "catalog", f"{MOST_RETIRING >> 20} MiB of names are being retired")

    async def Register(  # noqa: N802 - the proto's name
        self, request_iterator: AsyncIterator[catalog_pb2.RegisterRequest], context: _Context
    ) -> catalog_pb2.RegisterResponse:
        """Register a stream of entries."""
        return await answered(lambda: self._register(request_iterator), context)

    async def List(  # noqa: N802
        self, request: catalog_pb2.ListRequest, context: _Context
    ) -> catalog_pb2.ListResponse:
        """Return one page of entries."""

        async def answer() -> catalog_pb2.ListResponse:
            base, *_ = self._catalog(request.base_model)
            limit = page_size(request.page_size, PAGE, PAGE_MAX)
            check_labels(request.labels, "labels")
            scope = granted.get()
            page, state = await asyncio.gather(
                page_of(
                    self._catalogs.reader,
                    base,
                    prefixes=scope.prefixes(request.prefix),
                    labels=dict(request.labels),
                    after=request.page_token,
                    limit=limit,
                ),
                self._catalogs.reader.state(base),
            )
            entries = [_message(entry) for entry in page.entries]
            total = state.count if scope.adapters is None else 0  # not shown: it would count others' names
            return catalog_pb2.ListResponse(entries=entries, next_page_token=page.after, total=total)

        return await answered(answer, context, self._calls)

    async def Resolve(  # noqa: N802
        self, request: catalog_pb2.ResolveRequest, context: _Context
    ) -> catalog_pb2.CatalogEntry:
        """Return one entry."""

        async def answer() -> catalog_pb2.CatalogEntry:
            base, *_ = self._catalog(request.base_model)
            opened = granted.get().adapter(check_asked(request.adapter))
            entry = await self._catalogs.resolver.find(base, request.adapter) if opened else None
            if entry is None:
                message = f"is not in the catalog of {base}; check the name and the revision, or register it"
                raise AdapterNotFound(f"adapter {request.adapter!r}", message)
            if entry.retired:
                raise retired(request.adapter, base, "ask for another")
            return _message(entry)

        return await answered(answer, context, self._calls)

    async def Retire(  # noqa: N802
        self, request: catalog_pb2.RetireRequest, context: _Context
    ) -> catalog_pb2.RetireResponse:
        """Retire names."""

        async def answer() -> catalog_pb2.RetireResponse:
            if not 0 < len(request.names) <= RETIRED_AT_ONCE:
                raise InvalidRequest("names", f"must have 1 to {RETIRED_AT_ONCE} entries in one call")
            names = list(dict.fromkeys(check_adapter(name) for name in request.names))
            with self._retiring.share(client=sharer.get()) as share:
                share.fill(memory(request))
                registration = await self._registration(request.base_model)
                unknown = await self._catalogs.reader.absent(registration.base, names)
                await registration.add(Entry(name, retired=True) for name in names)
                await registration.finish()
            counts = {"adapters": len(names), "unknown": len(unknown)}
            _log.info("retired", base_model=registration.base, **counts, client=caller.get())
            return catalog_pb2.RetireResponse(unknown=unknown)

        return await answered(answer, context, self._calls)

    async def _register(self, requests: AsyncIterator[catalog_pb2.RegisterRequest]) -> catalog_pb2.RegisterResponse:
        registration: Registration | None = None
        with self._place():
            try:
                pace = Pace(self._silence_s)
                while (request := await _next(requests, pace)) is not None:
                    if registration is None:
                        registration = await self._registration(request.base_model)
                    await registration.add_lines(request.lines)
                    await registration.add(_entry(each) for each in request.entries)
                if registration is None:
                    raise InvalidRequest("stream", "is empty; send at least one message")
                await registration.finish()
            finally:
                if registration is not None:
                    await registration.abandon()
        counts = {"adapters": registration.registered, "refused": registration.refused}
        _log.info("registered", base_model=registration.base, **counts, client=caller.get())
        return _response(registration)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Occupy one stream during the block. Raises Overloaded if none is free, or none for this caller's key."""
        key = sharer.get()
        if self._registering.total() >= STREAMS:
            raise Overloaded("catalog", f"{STREAMS} streams are registering; retry later", retry_after_s=2.0)
        if key and self._registering[key] >= OF_ONE_KEY:
            message = f"{OF_ONE_KEY} streams with your key are registering; retry later"
            raise Overloaded("catalog", message, retry_after_s=2.0)
        self._registering[key] += 1
        try:
            yield
        finally:
            self._registering[key] -= 1

    async def _registration(self, base_model: str) -> Registration:
        """Start a registration within the key's scope. Raises CatalogNotFound, PermissionDenied, MapUnavailable."""
        scope = granted.get()
        if base_model and not scope.base(check_base(base_model)):
            raise PermissionDenied(f"base model {base_model!r}", f"is {OUT_OF_SCOPE}")
        base, manifests, record = self._catalog(base_model)
        await self._catalogs.whole(base, manifests)
        stored, writable = record.store is not None, Writable(scope, record.store, record.training)
        return Registration(base, Parts(manifests), self._writer, stored=stored, writable=writable)

    def _catalog(self, base_model: str) -> tuple[str, Source, BaseRecord]:
        """Return the base's name, its manifests' source, and its record. Raises CatalogNotFound."""
        view = self._router.find(base_model)
        if view.record is None or view.record.catalog is None:
            message = "keeps no catalog; set spec.catalog.manifests.uri of the BaseModel to a folder of its own"
            raise CatalogNotFound(f"base model {view.base!r}", message)
        return view.base, view.record.catalog, view.record


async def _next(
    requests: AsyncIterator[catalog_pb2.RegisterRequest], pace: Pace
) -> catalog_pb2.RegisterRequest | None:
    """Return a stream's next request, or None at its end. Raises InvalidRequest if it takes too long."""
    asked = time.monotonic()
    try:
        async with asyncio.timeout(pace.left_s):
            request = await anext(requests, None)
    except TimeoutError:
        again = "send it all again, since registering an entry twice does no harm"
        raise InvalidRequest("stream", f"{pace.message}; {again}") from None
    if request is not None:
        size = len(request.lines) + sum(each.ByteSize() for each in request.entries)
        pace.heard(size, time.monotonic() - asked)
    return request


def _message(entry: Entry) -> catalog_pb2.CatalogEntry:
    return catalog_pb2.CatalogEntry(
        name=entry.name,
        uri=entry.uri,
        revision=entry.revision,
        labels=entry.labels,
        rank=entry.rank,
        bytes=entry.bytes,
    )


def _entry(message: catalog_pb2.CatalogEntry) -> Entry:
    return Entry(
        name=message.name,
        uri=message.uri,
        revision=message.revision,
        labels=dict(message.labels),
        rank=message.rank,
        bytes=message.bytes,
        retired=message.retired,
    )


def _response(registration: Registration) -> catalog_pb2.RegisterResponse:
    refusals = [
        catalog_pb2.RefusedLine(line=each.line, reason=each.error.reason, message=str(each.error)[:1000])
        for each in registration.refusals
    ]
    return catalog_pb2.RegisterResponse(
        registered=registration.registered,
        refused=registration.refused,
        refusals=refusals,
        parts=registration.parts,
    )
