"""The gateway's gRPC services: Sampler and Placement, over a Router and a Mirror."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, nullcontext
from typing import Any, NoReturn, TypeVar

import grpc

from mint_contracts import placement_pb2, placement_pb2_grpc, sampling_pb2, sampling_pb2_grpc
from mint_contracts.errors import MintError
from mint_contracts.paging import page_size
from mint_contracts.wire import to_status
from mint_gateway import placement_pages
from mint_gateway.answering import Answering
from mint_gateway.explain import explain_all
from mint_gateway.explainer import Explainer
from mint_gateway.inflight import InFlight
from mint_gateway.route import Router
from mint_gateway.slow_clients import NothingTaken, Writing
from mint_gateway.time_slices import TimeSlices

LISTS_AT_ONCE = 4  # made of placements: a page of 10,000 takes 5 MiB until it is encoded

T = TypeVar("T")


class SamplerServicer(sampling_pb2_grpc.SamplerServicer):
    """Answers requests over gRPC."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    # Written as a coroutine, not a generator: a client's cancellation then reaches the router at once.
    async def Generate(  # type: ignore[override]  # noqa: N802 - the proto's name
        self, request: sampling_pb2.GenerateRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        """Answer through the best engine."""
        writing = Writing(context)
        try:
            await self._answering.answer(request, writing.write, context.time_remaining())
        except NothingTaken as error:
            with self._answering.holding(error.size):  # again, before anybody else can
                await writing.end(error)
        except MintError as error:
            await context.abort_with_status(to_status(error))
        except grpc.aio.AioRpcError as error:
            await pass_on(error, context)


class PlacementServicer(placement_pb2_grpc.PlacementServicer):
    """Explains where adapters are, and why."""

    def __init__(self, router: Router, why: Explainer, calls: InFlight) -> None:
        """`calls` counts and bounds the calls answered at the same time, together with those of other services."""
        self._router, self._calls = router, calls
        self._why = why
        self._turns = asyncio.Semaphore(LISTS_AT_ONCE)

    async def Explain(  # noqa: N802 - the proto's name
        self, request: placement_pb2.ExplainRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> placement_pb2.Explanation:
        """Explain where an adapter is and why, and which engine would answer now."""

        return await answered(lambda: self._why.adapter(request.base_model, request.adapter), context, self._calls)

    async def ExplainWave(  # noqa: N802 - the proto's name
        self, request: placement_pb2.ExplainWaveRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> placement_pb2.WaveExplanation:
        """Explain a wave's state."""

        return await answered(lambda: self._why.wave(request.wave), context, self._calls)

    async def ListPlacements(  # noqa: N802 - the proto's name
        self, request: placement_pb2.ListPlacementsRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> placement_pb2.ListPlacementsResponse:
        """Return a page of the adapters that are placed or held, of one base or of all."""

        async def answer() -> placement_pb2.ListPlacementsResponse:
            async with self._turns:
                return await page()

        async def page() -> placement_pb2.ListPlacementsResponse:
            size = page_size(request.page_size, placement_pages.PAGE, placement_pages.PAGE_MAX)
            end = placement_pages.end_of(request)
            views = self._router.views(request.base_model)
            response, slices = placement_pb2.ListPlacementsResponse(), TimeSlices()
            for view in (view for view in views if view.base >= end.base):
                after = end.adapter if view.base == end.base else ""
                async with aclosing(explain_all(view, self._router.now(view), after, size + 1)) as explanations:
                    async for explanation in explanations:
                        if len(response.placements) == size:
                            last = response.placements[-1]
                            response.next_page_token = placement_pages.token_after(request, last)
                            return response
                        response.placements.append(explanation)
                        await slices.rest()
            return response

        return await answered(answer, context, self._calls)


async def pass_on(error: grpc.aio.AioRpcError, context: "grpc.aio.ServicerContext[Any, Any]") -> NoReturn:
    """End the call with an engine's error unchanged, including its metadata."""
    await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
    raise error  # unreachable: abort raises


async def answered(
    make: Callable[[], Awaitable[T]], context: "grpc.aio.ServicerContext[Any, Any]", calls: InFlight | None = None
) -> T:
    """Return the result of `make`, counted among `calls`. Its MintError, or Overloaded, aborts the call."""
    try:
        with nullcontext() if calls is None else calls.admit():
            return await make()
    except MintError as error:
        await context.abort_with_status(to_status(error))
        raise  # unreachable: abort raises
