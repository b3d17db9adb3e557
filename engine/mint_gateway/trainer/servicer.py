"""The gateway's gRPC service Trainer, over a Forwarding: one log line per call."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar, cast

import grpc
import structlog
from google.protobuf.message import Message

from mint_contracts import training_pb2 as pb
from mint_contracts import training_pb2_grpc
from mint_contracts.byte_budget import ByteBudget
from mint_contracts.errors import MintError
from mint_contracts.wire import to_status
from mint_gateway.answering import TOKEN_BYTES, Fields, noting, noting_failure
from mint_gateway.field_count import memory
from mint_gateway.inflight import InFlight
from mint_gateway.metrics import Metrics
from mint_gateway.security.keys import caller, sharer
from mint_gateway.servicers import answered, pass_on
from mint_gateway.trainer.forwarding import CallTrail, Forwarding, Request

MOST_BYTES = 64 << 20  # of calls in flight

A = TypeVar("A", bound=Message)
_Context = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger()


class TrainerServicer(training_pb2_grpc.TrainerServicer):
    """Sends policies' calls to the engines that have them."""

    def __init__(self, forwarding: Forwarding, metrics: Metrics, most: int, calls: InFlight) -> None:
        """`most` bounds the policies' calls in flight; `calls` counts and bounds the listing calls."""
        self._forwarding, self._metrics, self._calls = forwarding, metrics, calls
        self._in_flight = InFlight(most, "training calls")
        self._budget = ByteBudget(MOST_BYTES, "gateway", f"has {MOST_BYTES >> 20} MiB of training calls in flight")

    async def CreatePolicy(self, request: pb.CreatePolicyRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        """Create a policy on its home engine, or on another that has room."""
        return await self._forward("CreatePolicy", pb.PolicyState, request, context)

    async def ResumePolicy(self, request: pb.ResumePolicyRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        """Resume a policy from what was saved, on an engine chosen as for CreatePolicy."""
        return await self._forward("ResumePolicy", pb.PolicyState, request, context)

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        """Return a policy's state, wherever it is."""
        return await self._forward("GetPolicy", pb.PolicyState, request, context)

    async def ListPolicies(  # noqa: N802
        self, request: pb.ListPoliciesRequest, context: _Context
    ) -> pb.ListPoliciesResponse:
        """Return the policies of every engine, or a page of resting ones."""
        if request.resting:
            return await answered(lambda: self._forwarding.resting(request), context, self._calls)
        return await answered(lambda: self._forwarding.list(request.base_model), context, self._calls)

    async def ForwardBackward(  # noqa: N802
        self, request: pb.ForwardBackwardRequest, context: _Context
    ) -> pb.ForwardBackwardResponse:
        """Forward to the policy's engine."""
        return await self._forward("ForwardBackward", pb.ForwardBackwardResponse, request, context)

    async def OptimStep(self, request: pb.OptimStepRequest, context: _Context) -> pb.OptimStepResponse:  # noqa: N802
        """Forward to the policy's engine."""
        return await self._forward("OptimStep", pb.OptimStepResponse, request, context)

    async def SaveState(self, request: pb.SaveStateRequest, context: _Context) -> pb.SaveStateResponse:  # noqa: N802
        """Forward to the policy's engine."""
        return await self._forward("SaveState", pb.SaveStateResponse, request, context)

    async def LoadState(self, request: pb.LoadStateRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        """Forward to the policy's engine."""
        return await self._forward("LoadState", pb.PolicyState, request, context)

    async def Publish(self, request: pb.PublishRequest, context: _Context) -> pb.PublishResponse:  # noqa: N802
        """Forward to the policy's engine."""
        return await self._forward("Publish", pb.PublishResponse, request, context)

    async def DropPolicy(self, request: pb.DropPolicyRequest, context: _Context) -> pb.DropPolicyResponse:  # noqa: N802
        """Forward to the policy's engine, or to any engine if that one has ended."""
        return await self._forward("DropPolicy", pb.DropPolicyResponse, request, context)

    def receiving(self) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        """Return, by method, a context that counts and logs a call that ends within it, as by a refusal."""
        service = pb.DESCRIPTOR.services_by_name["Trainer"]
        calls = [each.name for each in service.methods if each.name != "ListPolicies"]
        notes = {call: partial(self._note, CallTrail(call)) for call in calls}
        return {f"/{service.full_name}/{call}": partial(noting_failure, note) for call, note in notes.items()}

    async def _forward(self, call: str, _: type[A], request: Request, context: _Context) -> A:
        trail, share = CallTrail(call), self._budget.share(0, sharer.get())
        try:
            with noting(partial(self._note, trail)), self._in_flight.admit(), share:
                share.fill(_taken(request))
                return cast(A, await self._forwarding.forward(request, context.time_remaining(), trail))
        except MintError as error:
            await context.abort_with_status(to_status(error))
            raise  # unreachable: abort raises
        except grpc.aio.AioRpcError as error:
            await pass_on(error, context)

    def _note(self, trail: CallTrail, code: grpc.StatusCode, outcome: Fields) -> None:
        self._metrics.training_calls.labels(call=trail.call, code=code.name, client=caller.get()).inc()
        fields: Fields = {"call": trail.call, "policy": trail.policy, "base_model": trail.base_model}
        _log.info("training_call", **fields, engine=trail.engine, **outcome)


def _taken(request: Request) -> int:
    """Return about how many bytes of memory a call takes."""
    examples = request.examples if isinstance(request, pb.ForwardBackwardRequest) else ()
    return memory(request) + TOKEN_BYTES * sum(len(each.tokens) + len(each.targets) for each in examples)
