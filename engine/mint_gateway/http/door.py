"""The HTTP door: OpenAI's endpoints over the same router as gRPC's requests, and the web page."""

import asyncio
import secrets
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from mint_contracts.awaiting import end_tasks
from mint_contracts.byte_budget import ByteBudget, ByteShare
from mint_contracts.errors import InvalidRequest, Unavailable
from mint_contracts.sampling_pb2 import GenerateRequest
from mint_gateway.answering import REQUEST_ID_MAX_LENGTH, Answering
from mint_gateway.catalog.dates import Dates
from mint_gateway.choose import not_served
from mint_gateway.field_count import elements, elements_of
from mint_gateway.http import models, openai_request, openai_response, prompt_batch
from mint_gateway.http.auth_middleware import HEALTH, LIVE
from mint_gateway.http.buffered_answer import BufferedAnswer
from mint_gateway.http.connections import Connections, Limit
from mint_gateway.http.error_middleware import NAMED, REQUEST_ID, Handler, error_middleware, reply
from mint_gateway.http.offload import Offload
from mint_gateway.http.parsing import parsing
from mint_gateway.http.send_middleware import send_middleware, sent
from mint_gateway.http.stream import Stream
from mint_gateway.http.tools import NONE, Tools
from mint_gateway.inflight import InFlight
from mint_gateway.mirror import Mirror
from mint_gateway.page.answers import Page
from mint_gateway.route import Router
from mint_gateway.security.keys import sharer

MOST_BYTES = 4 << 20  # of a request, as over gRPC
# Totals in memory; tests/chart/test_gateway_memory.py compares all such bounds with the chart.
MOST_ARRIVING = 64 << 20  # of requests that have not arrived completely, or are not parsed yet
MOST_KEPT = 96 << 20  # of answers that are not streamed, from their first events until the client has read them
LISTS_AT_ONCE = 4  # made of models: 10,000 take 6 MiB
BODY_S = 30.0  # for a request's body to arrive
MOST_OUTSIDE = 64  # connections beyond the limit that are told so; any others are closed
OUTSIDE_S = 5.0  # for a connection beyond the limit to send its request

T = TypeVar("T")


class Bounds(msgspec.Struct, frozen=True):
    """Bounds on the door's connections."""

    most: int
    idle_s: float  # until an idle one is closed
    grace_s: float  # for running requests when the door closes


class Door:
    """The endpoints.

    `ready` returns whether this gateway answers requests; `calls` counts and bounds all others; `guards` are
    middlewares that admit or refuse requests.
    """

    def __init__(
        self,
        answering: Answering,
        router: Router,
        mirror: Mirror,
        ready: Callable[[], bool],
        dates: Dates,
        calls: InFlight,
        page: Page,
        guards: Sequence[Middleware] = (),
    ) -> None:
        self._answering = answering
        self._router = router
        self._mirror = mirror
        self._ready = ready
        self._dates = dates
        self._calls = calls
        self._page = page
        self._guards = guards
        self._offload, self._turns = Offload(), asyncio.Semaphore(LISTS_AT_ONCE)
        self._arriving = ByteBudget(MOST_ARRIVING, "gateway", f"{MOST_ARRIVING >> 20} MiB of requests are arriving")
        message = f"keeps {MOST_KEPT >> 20} MiB of complete answers that clients have not read; retry, or stream"
        self._kept = ByteBudget(MOST_KEPT, "gateway", message)

    def application(self) -> web.Application:
        """Return the application to serve."""
        application = web.Application(
            client_max_size=MOST_BYTES, middlewares=[send_middleware, error_middleware, self._keep, *self._guards]
        )
        application.router.add_post("/v1/completions", self._complete)
        application.router.add_post("/v1/chat/completions", self._chat)
        application.router.add_get("/v1/models", self._models)
        application.router.add_get("/v1/models/{model:.+}", self._model)
        application.router.add_get(HEALTH, self._health)
        application.router.add_get(LIVE, _live)
        self._page.add_routes(application.router)
        return application

    def outside(self) -> web.Application:
        """Return the application for connections beyond the limit: it answers probes, and 503 to everything else."""
        application = web.Application(middlewares=[send_middleware, _parting, error_middleware])
        application.router.add_get(HEALTH, self._health)
        application.router.add_get(LIVE, _live)
        application.router.add_route("*", "/{path:.*}", _full)
        return application

    @web.middleware
    async def _keep(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Send a complete response, and account for its memory until the client has read it. Raises Overloaded."""
        response = await handler(request)
        if response.prepared or not isinstance(response, web.Response):
            return response
        with self._kept.share(client=sharer.get()) as share:
            share.fill(response.content_length or 0)
            return await sent(request, response)

    async def _complete(self, http: web.Request) -> web.StreamResponse:
        def read(
            body: bytes, bases: Container[str]
        ) -> tuple[openai_request.Delivery, Sequence[GenerateRequest], int]:
            wanted = openai_request.read(body, openai_request.TextRequest)
            requests = openai_request.text_requests(wanted, bases)
            return wanted.delivery(), requests, elements_of(requests[0])  # the others have as many

        wanted, requests, count = await self._parsed(http, read)
        elements.set(count)
        return await self._answer(http, wanted, requests, openai_response.TEXT)

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        def read(body: bytes, bases: Container[str]) -> tuple[openai_request.Delivery, GenerateRequest, Tools, int]:
            wanted = openai_request.read(body, openai_request.ChatRequest)
            request = openai_request.chat_request(wanted, bases)
            delivery = wanted.delivery(shows_thoughts=wanted.include_reasoning)
            return delivery, request, wanted.called().named, elements_of(request)

        wanted, request, tools, count = await self._parsed(http, read)
        elements.set(count)
        return await self._answer(http, wanted, [request], openai_response.CHAT, tools)

    async def _parsed(self, http: web.Request, read: Callable[[bytes, Container[str]], T]) -> T:
        """Note a request's ID, read its body, which is not kept, and parse it with the bases that its key opens."""
        with self._answering.receiving() as trail, self._arriving.share(client=sharer.get()) as share:
            trail.request_id = http[NAMED] = _request_id(http)
            bases = self._mirror.views_in_scope()
            body = await _body(http, share)
            return await self._offload.do(len(body), lambda: read(body, bases))

    async def _answer(
        self,
        http: web.Request,
        wanted: openai_request.Delivery,
        requests: Sequence[GenerateRequest],
        form: openai_response.Form,
        tools: Tools = NONE,
    ) -> web.StreamResponse:
        request_id, created = http[NAMED], int(time.time())
        prompt_batch.name(requests, request_id)
        if wanted.stream:
            stream = Stream(http, form, wanted, tools, request_id, created)
            return await stream.run(self._answering, requests)
        with self._kept.share(client=sharer.get()) as share:
            kept = BufferedAnswer(share, wanted.n)

            def whole() -> bytes:
                started = kept.started()
                echoes = {prompt: openai_response.echo(requests[prompt], each) for prompt, each in started.items()}
                found = openai_response.revision(started.values())
                written = requests[0].chat.tools  # a chat is one prompt
                parsed = parsing(tools, written, started[0], shows=wanted.shows_thoughts)
                nonce = secrets.token_hex()
                head = openai_response.Head(form, request_id, wanted.model, created, found, parsed, nonce)
                return msgspec.json.encode(openai_response.whole(head, echoes, kept.events(), wanted.n))

            await prompt_batch.answer(self._answering, requests, wanted.n, kept.take)
            body = await self._offload.do(kept.size, whole)
            kept.replace_with(body)
            return await sent(http, reply(msgspec.Raw(body), headers={REQUEST_ID: request_id}))

    async def _models(self, http: web.Request) -> web.Response:
        limit = http.query.get("limit", str(models.DEFAULT))
        if not limit.isdecimal() or len(limit) > 9:
            raise InvalidRequest("limit", f"is not a number: {limit[:100]!r}")
        with self._calls.admit():
            async with self._turns:
                return reply(await self._listed(http.query.get("after", ""), int(limit)))

    async def _listed(self, after: str, limit: int) -> openai_response.Json:
        views = dict(self._mirror.views_in_scope())  # so that each view is restricted only once
        page = await models.page(views, after, limit)
        served = await models.serving_each(views, page)
        created = await self._dates.of((bases[0], name) for name, bases in served.items())
        return models.listed(views, page, served, created)

    async def _model(self, http: web.Request) -> web.Response:
        name, base = http.match_info["model"], http.query.get("base_model", "")
        views = dict(self._mirror.views_in_scope())
        if name in views:
            return reply(models.base(views[name]))
        with self._calls.admit():
            view, source = await self._router.locate(base, name)
            serving = models.serving([view] if base else models.in_order(views), name)
            if not serving and (source or view.is_held(name)):
                serving = [view]
            if not serving:
                raise not_served(view, name)
            created = await self._dates.of([(serving[0].with_source(name, source), name)])
        return reply(models.adapter(name, serving, created.get(name, 0)))

    async def _health(self, http: web.Request) -> web.Response:
        ready = self._ready()
        return reply({"ready": ready}, status=200 if ready else 503)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; an empty host means every address of the machine, and port 0 a free one."""
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server((host, port))


@dataclass(frozen=True)
class Opened:
    """An open door. The task `accepting` ends only through a defect, or when the door closes."""

    accepting: asyncio.Task[None]
    _listening: socket.socket
    _runners: Sequence[web.AppRunner]

    async def close(self) -> None:
        """Stop accepting connections and let running requests end, for at most `Bounds.grace_s`."""
        await end_tasks([self.accepting])
        self._listening.close()
        await asyncio.gather(*(runner.cleanup() for runner in self._runners))


async def opened(door: Door, listening: socket.socket, bounds: Bounds, context: ssl.SSLContext | None) -> Opened:
    """Open the door on a listening socket, with TLS if `context` is given."""
    inside = await _serving(door.application(), bounds.grace_s)
    outside = await _serving(door.outside(), bounds.grace_s)
    places = ((inside, Limit(bounds.most, bounds.idle_s)), (outside, Limit(MOST_OUTSIDE, OUTSIDE_S)))
    connections = Connections({runner.server: limit for runner, limit in places if runner.server}, context)
    return Opened(asyncio.create_task(connections.accept(listening)), listening, (inside, outside))


async def _serving(application: web.Application, grace_s: float) -> web.AppRunner:
    # A client that goes away ends its handler, and with it the engine's work.
    runner = web.AppRunner(
        application,
        handler_cancellation=True,
        shutdown_timeout=grace_s / 2,  # aiohttp waits for this long twice
    )
    await runner.setup()
    return runner


@web.middleware
async def _parting(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    response.force_close()
    return response


async def _full(_: web.Request) -> web.StreamResponse:
    raise Unavailable("gateway", "has reached its limit of connections; retry later", retry_after_s=1.0)


async def _live(_: web.Request) -> web.Response:
    """Answer while the event loop runs, whatever the state of the map."""
    return reply({"live": True})


async def _body(http: web.Request, share: ByteShare) -> bytes:
    if http.content_type != "application/json":
        raise InvalidRequest("Content-Type", f"is {http.content_type[:100]!r}; send application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in http.content.iter_any():
                body += piece
                if len(body) > MOST_BYTES:
                    raise web.HTTPRequestEntityTooLarge(max_size=MOST_BYTES, actual_size=len(body))
                share.fill(len(body))
    except TimeoutError:
        raise InvalidRequest("body", f"did not arrive in full within {BODY_S:g} s; send it again") from None
    except web.RequestPayloadError as error:
        raise InvalidRequest("body", f"is not encoded as its headers say: {error}") from None
    return bytes(body)


def _request_id(http: web.Request) -> str:
    header = http.headers.get(REQUEST_ID, "")
    if not (header.isascii() and header.isprintable()):
        raise InvalidRequest(REQUEST_ID, "holds characters that are not printable ASCII")
    if len(header) > REQUEST_ID_MAX_LENGTH:
        raise InvalidRequest(REQUEST_ID, f"is longer than {REQUEST_ID_MAX_LENGTH} characters")
    return header or uuid.uuid4().hex
