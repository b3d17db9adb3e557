"""The Trainer service of a scripted engine: it has policies, counts their calls and learns nothing."""

import asyncio
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from mint_contracts import training_pb2 as pb
from mint_contracts import training_pb2_grpc
from mint_contracts.errors import PolicyNotFound
from mint_contracts.records import PolicyRoom
from mint_contracts.wire import to_status

ROOM = PolicyRoom(budget=1 << 30, weights={}, own=20, copies=20)

A = TypeVar("A", bound=Message)
_Context = grpc.aio.ServicerContext[Any, Any]


class ScriptedTrainer(training_pb2_grpc.TrainerServicer):
    """A Trainer that keeps every request naming a policy in `asked`."""

    def __init__(self) -> None:
        self.policies: dict[str, pb.PolicyState] = {}
        self.resting: dict[str, pb.PolicyState] = {}
        self.asked: list[Any] = []
        self.loses_answers = False  # it goes away after a drop, before it answers
        self.answers = asyncio.Event()  # ListPolicies waits for it
        self.answers.set()

    async def CreatePolicy(self, request: pb.CreatePolicyRequest, _: _Context) -> pb.PolicyState:  # noqa: N802
        self.asked.append(request)
        return self.policies.setdefault(request.policy, pb.PolicyState(policy=request.policy, life=1))

    async def ResumePolicy(self, request: pb.ResumePolicyRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        return await self._known(request, context)

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        return await self._known(request, context)

    async def ListPolicies(  # noqa: N802
        self, request: pb.ListPoliciesRequest, _: _Context
    ) -> pb.ListPoliciesResponse:
        await self.answers.wait()
        if request.resting:
            names = sorted(name for name in self.resting if name > request.page_token)
            page = names[: request.page_size]
            token = page[-1] if len(names) > len(page) else ""
            return pb.ListPoliciesResponse(policies=[self.resting[name] for name in page], next_page_token=token)
        return pb.ListPoliciesResponse(policies=list(self.policies.values()))

    async def ForwardBackward(  # noqa: N802
        self, request: pb.ForwardBackwardRequest, context: _Context
    ) -> pb.ForwardBackwardResponse:
        return await self._counted(request, context, pb.ForwardBackwardResponse())

    async def OptimStep(self, request: pb.OptimStepRequest, context: _Context) -> pb.OptimStepResponse:  # noqa: N802
        return await self._counted(request, context, pb.OptimStepResponse())

    async def SaveState(self, request: pb.SaveStateRequest, context: _Context) -> pb.SaveStateResponse:  # noqa: N802
        return await self._counted(request, context, pb.SaveStateResponse())

    async def LoadState(self, request: pb.LoadStateRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        return await self._counted(request, context, await self._known(request, context))

    async def Publish(self, request: pb.PublishRequest, context: _Context) -> pb.PublishResponse:  # noqa: N802
        return await self._counted(request, context, pb.PublishResponse())

    async def DropPolicy(  # noqa: N802
        self, request: pb.DropPolicyRequest, context: _Context
    ) -> pb.DropPolicyResponse:
        self.asked.append(request)
        unknown = self.policies.pop(request.policy, None) is None
        if self.loses_answers and not unknown:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return pb.DropPolicyResponse(unknown=unknown)

    async def _counted(self, request: Any, context: _Context, answer: A) -> A:
        (await self._known(request, context)).sequence = request.sequence
        return answer

    async def _known(self, request: Any, context: _Context) -> pb.PolicyState:
        self.asked.append(request)
        if request.policy not in self.policies:
            await context.abort_with_status(to_status(PolicyNotFound(f"policy {request.policy!r}", "is not here")))
        return self.policies[request.policy]
