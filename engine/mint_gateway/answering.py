"""Answering one request from either door: forward it to an engine, count it, and log it."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import grpc
import structlog
from aiohttp import web

from mint_contracts import sampling_pb2
from mint_contracts.byte_budget import ByteBudget
from mint_contracts.errors import InvalidRequest, MintError, Unavailable
from mint_gateway.begun import Begun
from mint_gateway.field_count import memory
from mint_gateway.metrics import Metrics
from mint_gateway.route import Router, Send, Trail
from mint_gateway.security.keys import caller, sharer
from mint_gateway.slow_clients import NothingTaken

REQUEST_ID_MAX_LENGTH = 128
LOGGED_LENGTH, LOGGED_ERROR_LENGTH = 400, 1500  # longer than any valid name; clients may send megabytes as a name

MOST_BYTES = 96 << 20  # of requests in flight through both doors together
# Of prompts' log-probabilities that clients have not read yet. They come in one event, which takes up to seven times
# its size on the wire: parsed, encoded again, and in gRPC.
MOST_SCORES = 320 << 20
SCORES_TIMES = 6
RETRY_S = 1.0  # other gateways answer, or this one's successor soon will
TOKEN_BYTES = 10  # memory that protobuf uses per token

Fields = dict[str, object]

_log = structlog.get_logger()


class Answering:
    """Forwards requests and writes one log line for each."""

    def __init__(self, router: Router, metrics: Metrics) -> None:
        self._router = router
        self._metrics = metrics
        self._budget = ByteBudget(MOST_BYTES, "gateway", f"has {MOST_BYTES >> 20} MiB of requests in flight")
        self._scores = ByteBudget(
            MOST_SCORES, "gateway", f"holds {MOST_SCORES >> 20} MiB of prompts' log-probabilities"
        )
        self._ends_at: float | None = None
        self._in_flight: set[asyncio.Timeout] = set()

    async def answer(self, request: sampling_pb2.GenerateRequest, send: Send, remaining_s: float | None) -> None:
        """Send the events of an answer; `remaining_s` is the client's deadline, if it has one.

        The router may modify the request from here on. Raises MintError for the gateway's own errors and AioRpcError
        for errors from an engine.
        """
        started_at = asyncio.get_running_loop().time()
        trail = Trail(request_id=request.request_id[:REQUEST_ID_MAX_LENGTH] or uuid.uuid4().hex)
        with noting(partial(self._note, trail, started_at)):
            if len(request.request_id) > REQUEST_ID_MAX_LENGTH:
                raise InvalidRequest("request_id", f"is longer than {REQUEST_ID_MAX_LENGTH} characters")
            with self._budget.share(client=sharer.get()) as share:
                size = max(memory(request), TOKEN_BYTES * len(request.tokens.ids))
                share.fill(size)
                begun = Begun(request, share, size)
                weighed = partial(self._send, send)
                async with self._until_the_end():
                    await self._router.generate(request, weighed, begun, remaining_s=remaining_s, trail=trail)

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Account for an event of this size until its client has read it. Raises Overloaded, CapacityExceeded."""
        with self._scores.share(client=sharer.get()) as share:
            share.fill(SCORES_TIMES * size)
            yield

    async def _send(self, send: Send, event: sampling_pb2.GenerateEvent) -> None:
        if not event.HasField("started"):  # only this one has what a prompt's tokens need
            await send(event)
            return
        size = event.ByteSize()
        with self.holding(size):
            try:
                await send(event)
            except NothingTaken as error:
                error.size = size
                raise

    @contextmanager
    def receiving(self) -> Iterator[Trail]:
        """Count and log a request that ends within the block, before `answer` is called with it, as by a refusal.

        Yields its trail, of which the block may set the request's ID.
        """
        trail = Trail(request_id="")
        with noting_failure(partial(self._note, trail, asyncio.get_running_loop().time())):
            yield trail

    def end_at(self, when: float) -> None:
        """End what is not answered by then, on the event loop's clock, with an error that clients retry."""
        self._ends_at = when
        for each in self._in_flight:
            each.reschedule(when)

    @asynccontextmanager
    async def _until_the_end(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(self._ends_at) as limit:
                self._in_flight.add(limit)
                try:
                    yield
                finally:
                    self._in_flight.discard(limit)
        except TimeoutError:
            if not limit.expired():
                raise
            raise Unavailable("gateway", "is shutting down; retry", retry_after_s=RETRY_S) from None

    def _note(self, trail: Trail, started_at: float, code: grpc.StatusCode, outcome: Fields) -> None:
        self._metrics.requests.labels(code=code.name, client=caller.get()).inc()
        fields: Fields = {"request_id": trail.request_id, "base_model": trail.base_model[:LOGGED_LENGTH]}
        fields |= {"adapter": trail.adapter[:LOGGED_LENGTH], "engine": trail.engine}
        fields |= {"revision": trail.revision, "why": trail.why, "tries": trail.tries}
        if trail.lost:
            fields["lost_engines"] = trail.lost
        if trail.first_token_at is not None:
            first_token_s = trail.first_token_at - started_at
            self._metrics.first_token.observe(first_token_s)
            fields["first_token_seconds"] = round(first_token_s, 4)
        _log.info("request", **fields, **outcome)


@contextmanager
def noting(note: Callable[[grpc.StatusCode, Fields], None]) -> Iterator[None]:
    """Call `note` when the block ends, with its outcome as a gRPC code and as fields for a log line."""
    loop = asyncio.get_running_loop()
    started_at, code, failure = loop.time(), grpc.StatusCode.UNKNOWN, ""
    try:
        yield
        code = grpc.StatusCode.OK
    except asyncio.CancelledError:
        code = grpc.StatusCode.CANCELLED
        raise
    except ConnectionError as error:  # an HTTP client disconnected during a write, or a client read nothing
        code, failure = grpc.StatusCode.CANCELLED, str(error)
        raise
    except MintError as error:
        code, failure = error.grpc_status, f"{error.reason}: {error}"
        raise
    except grpc.aio.AioRpcError as error:
        code, failure = error.code(), error.details() or ""
        raise
    except web.HTTPException as error:  # a body that is too large
        code, failure = grpc.StatusCode.INVALID_ARGUMENT, error.text or error.reason
        raise
    finally:
        outcome: Fields = {"code": code.name, "seconds": round(loop.time() - started_at, 4)}
        if client := caller.get():
            outcome["client"] = client
        if failure:
            outcome["error"] = failure[:LOGGED_ERROR_LENGTH]
        note(code, outcome)


@contextmanager
def noting_failure(note: Callable[[grpc.StatusCode, Fields], None]) -> Iterator[None]:
    """As `noting`, but only if the block does not end well."""

    def failed(code: grpc.StatusCode, outcome: Fields) -> None:
        if code is not grpc.StatusCode.OK:
            note(code, outcome)

    with noting(failed):
        yield
