"""The gateway's gRPC service Waves, over a WaveWatch."""

from contextlib import aclosing
from typing import Any

import grpc

from mint_contracts import training_pb2, training_pb2_grpc
from mint_contracts.errors import MintError
from mint_contracts.wire import to_status
from mint_gateway.inflight import InFlight
from mint_gateway.servicers import answered
from mint_gateway.slow_clients import NothingTaken, Writing
from mint_gateway.waves.watch import WaveWatch


class WavesServicer(training_pb2_grpc.WavesServicer):
    """Reports the progress of training waves."""

    def __init__(self, watch: WaveWatch, calls: InFlight) -> None:
        """`calls` counts and bounds the unary calls in flight; the watch bounds its streams itself."""
        self._watch, self._calls = watch, calls

    # Written as a coroutine, not a generator: a client's cancellation then reaches the watch at once.
    async def WatchWave(  # type: ignore[override]  # noqa: N802 - the proto's name
        self, request: training_pb2.WatchWaveRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        """Send the wave's progress now and whenever it changes."""
        writing = Writing(context)
        try:
            asked = {name: getattr(request, name) for name in ("history", "new_rewards_only", "curves")}
            async with aclosing(self._watch.watch(request.wave, **asked)) as watched:
                async for progress in watched:
                    await writing.write(progress)
        except NothingTaken as error:
            await writing.end(error)
        except MintError as error:
            await context.abort_with_status(to_status(error))

    async def ListWaves(  # noqa: N802 - the proto's name
        self, request: training_pb2.ListWavesRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> training_pb2.ListWavesResponse:
        """Return every training wave in aggregate."""

        async def answer() -> training_pb2.ListWavesResponse:
            return training_pb2.ListWavesResponse(waves=await self._watch.list(request.base_model))

        return await answered(answer, context, self._calls)
