"""The gateway's gRPC services: Sampler and Placement, over a Router and a Mirror."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog

from mint_contracts import placement_pb2, placement_pb2_grpc, sampling_pb2, sampling_pb2_grpc
from mint_contracts.errors import InvalidRequest, MintError, NotFound
from mint_contracts.map_reader import MapReader
from mint_contracts.names import check_base, check_wave
from mint_contracts.wire import to_status
from mint_gateway.explain import explain, explain_all
from mint_gateway.explain_wave import explain_wave
from mint_gateway.metrics import Metrics
from mint_gateway.mirror import Mirror
from mint_gateway.route import Router, Trail
from mint_gateway.view import incomplete

REQUEST_ID_MAX_LENGTH = 128
LOGGED_LENGTH, LOGGED_ERROR_LENGTH = 400, 1500  # more than any name has; clients may send megabytes as one
SLICE_S = 0.005  # of a long list, in which nobody else is answered

T = TypeVar("T")
_log = structlog.get_logger()


class SamplerServicer(sampling_pb2_grpc.SamplerServicer):
    """Forwards requests; one log line each."""

    def __init__(self, router: Router, metrics: Metrics) -> None:
        self._router = router
        self._metrics = metrics

    # Written as a coroutine, not a generator: a client's cancellation then arrives inside the router at once.
    async def Generate(  # type: ignore[override]  # noqa: N802 - the proto's name
        self, request: sampling_pb2.GenerateRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        """Answer by way of the best engine."""
        started_at = asyncio.get_running_loop().time()
        trail = Trail(request_id=request.request_id[:REQUEST_ID_MAX_LENGTH] or uuid.uuid4().hex)
        code, failure = grpc.StatusCode.UNKNOWN, ""
        try:
            if len(request.request_id) > REQUEST_ID_MAX_LENGTH:
                raise InvalidRequest("request_id", f"is longer than {REQUEST_ID_MAX_LENGTH} characters")
            await self._router.generate(request, context.write, remaining_s=context.time_remaining(), trail=trail)
            code = grpc.StatusCode.OK
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except MintError as error:
            code, failure = error.grpc_status, f"{error.reason}: {error}"
            await context.abort_with_status(to_status(error))
        except grpc.aio.AioRpcError as error:
            # An engine's own word goes through as it is, details included.
            code, failure = error.code(), error.details() or ""
            await context.abort(code, failure, tuple(error.trailing_metadata() or ()))
        finally:
            self._note(trail, code, failure, started_at)

    def _note(self, trail: Trail, code: grpc.StatusCode, failure: str, started_at: float) -> None:
        seconds = asyncio.get_running_loop().time() - started_at
        self._metrics.requests.labels(code=code.name).inc()
        fields: dict[str, object] = {"request_id": trail.request_id, "base_model": trail.base_model[:LOGGED_LENGTH]}
        fields |= {"adapter": trail.adapter[:LOGGED_LENGTH], "engine": trail.engine}
        fields |= {"revision": trail.revision, "why": trail.why}
        fields |= {"tries": trail.tries, "code": code.name, "seconds": round(seconds, 4)}
        if trail.first_token_at is not None:
            first_token_s = trail.first_token_at - started_at
            self._metrics.first_token.observe(first_token_s)
            fields["first_token_seconds"] = round(first_token_s, 4)
        if failure:
            fields["error"] = failure[:LOGGED_ERROR_LENGTH]
        _log.info("request", **fields)


class PlacementServicer(placement_pb2_grpc.PlacementServicer):
    """Tells where adapters are, and why."""

    def __init__(self, router: Router, mirror: Mirror, reader: MapReader) -> None:
        self._router = router
        self._mirror = mirror
        self._reader = reader

    async def Explain(  # noqa: N802 - the proto's name
        self, request: placement_pb2.ExplainRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> placement_pb2.Explanation:
        """Why is this adapter where it is, and which engine would answer now?"""

        async def answer() -> placement_pb2.Explanation:
            view, source = await self._router.locate(request.base_model, request.adapter)
            return explain(view.told(request.adapter, source), request.adapter, self._router.now(view))

        return await answered(answer, context)

    async def ExplainWave(  # noqa: N802 - the proto's name
        self, request: placement_pb2.ExplainWaveRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> placement_pb2.WaveExplanation:
        """Why does this wave stand as it stands?"""

        async def answer() -> placement_pb2.WaveExplanation:
            wave = check_wave(request.wave)
            unknown: MintError | None = None
            for base, view in sorted(self._mirror.known().items()):
                has = await self._reader.has_wave(base, wave)
                if has is None:
                    unknown = incomplete(base)
                if has:
                    others = await self._reader.waves(base)
                    if wave in others:  # not deleted meanwhile
                        return explain_wave(view, others[wave], others)
            if unknown:
                raise unknown
            said = "is no wave that the operator has taken up over a base; see kubectl get adapterwaves"
            raise NotFound(f"wave {wave}", said)

        return await answered(answer, context)

    async def ListPlacements(  # noqa: N802 - the proto's name
        self, request: placement_pb2.ListPlacementsRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> placement_pb2.ListPlacementsResponse:
        """Every adapter that is placed or held, of one base or of all."""

        async def answer() -> placement_pb2.ListPlacementsResponse:
            if request.base_model:
                views = [self._router.find(check_base(request.base_model), "")]
            else:
                views = [view for _, view in sorted(self._mirror.known().items())]
            response, loop = placement_pb2.ListPlacementsResponse(), asyncio.get_running_loop()
            pause_at = loop.time() + SLICE_S
            for view in views:
                for explanation in explain_all(view, self._router.now(view)):
                    response.placements.append(explanation)
                    if loop.time() > pause_at:
                        await asyncio.sleep(0)
                        pause_at = loop.time() + SLICE_S
            return response

        return await answered(answer, context)


async def answered(make: Callable[[], Awaitable[T]], context: "grpc.aio.ServicerContext[Any, Any]") -> T:
    """What `make` gives; its MintError ends the call."""
    try:
        return await make()
    except MintError as error:
        await context.abort_with_status(to_status(error))
        raise  # abort has raised already
