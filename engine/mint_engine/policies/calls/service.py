"""The gRPC Trainer service: an engine's training primitives for policies that no wave trains.

They are computed like waves' policies: calls of many clients share forward and backward passes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from mint_contracts import training_pb2 as pb
from mint_contracts import training_pb2_grpc
from mint_contracts.errors import (
    BaseModelNotFound,
    InvalidRequest,
    MintError,
)
from mint_contracts.names import check_adapter
from mint_contracts.paging import page_size
from mint_contracts.wire import to_status
from mint_engine.background_threads import run_in_background
from mint_engine.policies.calls import call_checkpoints
from mint_engine.policies.calls.call_context import CallContext
from mint_engine.policies.calls.calls import Calls
from mint_engine.policies.calls.primitives import (
    Ordered,
    batch_of_request,
    digest_of_request,
    optimizer_of_request,
    response_of,
    settings_of,
)
from mint_engine.policies.calls.register import Register
from mint_engine.policies.stored import revisions
from mint_engine.policies.stored.series import Name
from mint_engine.policies.updates.copying import packing
from mint_engine.sources.blocking import run_blocking
from mint_engine.training.pieces import longest_of

MOST_LISTED = 1000  # resting policies per page

M = TypeVar("M", bound=Message)
_Named = Ordered | pb.CreatePolicyRequest | pb.ResumePolicyRequest | pb.GetPolicyRequest | pb.DropPolicyRequest
_Context = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger(__name__)


class TrainerService(training_pb2_grpc.TrainerServicer):
    """The servicer of an engine of `base` ("namespace/name"), over the policies in `register`."""

    def __init__(self, base: str, engine: str, register: Register) -> None:
        self._base, self._engine, self._register = base, engine, register

    async def CreatePolicy(self, request: pb.CreatePolicyRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        """Create a policy; repeating the request while the policy is still new succeeds."""

        async def work() -> pb.PolicyState:
            name = self._own(request)
            return self._policy_state(name, await self._register.create(name, settings_of(request)))

        return await _answered(work, context)

    async def ResumePolicy(self, request: pb.ResumePolicyRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        """Resume a policy from its newest checkpoint; repeating the request succeeds."""

        async def work() -> pb.PolicyState:
            name = self._own(request)
            return self._policy_state(
                name, await self._register.resume(name, request.life, anew=request.drop_gradient)
            )

        return await _answered(work, context)

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        """Return a policy's state without waiting for its call under way."""

        async def work() -> pb.PolicyState:
            name = self._own(request)
            return self._policy_state(name, self._register.known_made(name, request.life))

        return await _answered(work, context, noted=False)  # gateways ask every engine

    async def ListPolicies(  # noqa: N802
        self, request: pb.ListPoliciesRequest, context: _Context
    ) -> pb.ListPoliciesResponse:
        """Return all policies on this engine, or a page of the base's resting ones."""

        async def work() -> pb.ListPoliciesResponse:
            self._refuse_other(request.base_model)
            if request.resting:
                return await self._resting(request)
            return pb.ListPoliciesResponse(policies=[self._policy_state(*each) for each in self._register.made()])

        return await _answered(work, context)

    async def ForwardBackward(  # noqa: N802
        self, request: pb.ForwardBackwardRequest, context: _Context
    ) -> pb.ForwardBackwardResponse:
        """Compute a loss over examples and add its gradients to the policy's."""

        async def work(here: CallContext, calls: Calls) -> pb.ForwardBackwardResponse:
            # On another thread: a batch may have millions of routes to check.
            batch = await asyncio.to_thread(batch_of_request, request, here.training.step_thread.routes)
            with here.room.updating(calls.holder, longest_of(batch)):
                return response_of((await here.training.step_thread.learn(batch, None)).outcome)

        return await self._once(request, work, context)

    async def OptimStep(self, request: pb.OptimStepRequest, context: _Context) -> pb.OptimStepResponse:  # noqa: N802
        """Take one step along the gradients."""

        async def work(here: CallContext, calls: Calls) -> pb.OptimStepResponse:
            name, optimizer = request.policy, optimizer_of_request(request)
            step = await here.training.step_thread.step(name, optimizer)
            calls.step = step.step
            return pb.OptimStepResponse(step=step.step, grad_norm=step.grad_norm, skipped=step.skipped)

        return await self._once(request, work, context)

    async def SaveState(self, request: pb.SaveStateRequest, context: _Context) -> pb.SaveStateResponse:  # noqa: N802
        """Write a checkpoint; it is durable when this returns."""

        async def work(here: CallContext, calls: Calls) -> pb.SaveStateResponse:
            name, sequence = request.policy, request.sequence
            saving = partial(call_checkpoints.save, here, name, calls, sequence)
            return pb.SaveStateResponse(uri=await self._register.kept(name, calls, saving))

        return await self._once(request, work, context)

    async def LoadState(self, request: pb.LoadStateRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        """Continue from a checkpoint of the policy, or of another one of the base."""

        async def work(here: CallContext, calls: Calls) -> pb.PolicyState:
            saved_by = check_adapter(request.saved_by or request.policy)
            nbytes = await call_checkpoints.room_to_load(here, request.uri, saved_by)
            async with here.copying(calls, nbytes):
                loading = partial(call_checkpoints.load, here, request.policy, calls, request.uri, saved_by)
                read = await self._register.kept(request.policy, calls, loading)
                step = read.step  # read before the step thread owns it
                await here.replace(calls, read)
            calls.step = step
            policy_state = self._policy_state(request.policy, calls)
            policy_state.sequence = request.sequence
            return policy_state

        return await self._once(request, work, context)

    async def Publish(self, request: pb.PublishRequest, context: _Context) -> pb.PublishResponse:  # noqa: N802
        """Publish the policy's weights as a revision, durable and served when this returns, soon by any engine."""

        async def work(here: CallContext, calls: Calls) -> pb.PublishResponse:
            policy, name = request.policy, Name(calls.lease, request.sequence)

            async def publishing() -> pb.PublishResponse:
                async with here.room.copying(calls.holder, here.room.of(calls.holder).published):
                    copy = await here.training.step_thread.parts(
                        lambda trainer: packing(trainer, policy, here.training.dtype)
                    )
                    published, packed = await run_in_background(revisions.publish, here.store, policy, name, copy)
                await call_checkpoints.refuse_superseded(here, policy, calls)  # the name is its engine's now
                await here.announcement_cache.announce(policy, calls.life, name, published.source)
                here.training.residency.offer(policy, published.source, packed)
                return pb.PublishResponse(revision=published.revision, uri=published.source.uri)

            await here.refuse_taken(policy)
            response = await self._register.kept(policy, calls, publishing)
            await run_in_background(revisions.sweep, here.store, policy, name)
            return response

        return await self._once(request, work, context)

    async def DropPolicy(self, request: pb.DropPolicyRequest, context: _Context) -> pb.DropPolicyResponse:  # noqa: N802
        """Drop a policy and its name's announcement; what it has saved and published stays in the store."""

        async def work() -> pb.DropPolicyResponse:
            found = await self._register.drop(self._own(request), request.life, gone=request.gone)
            return pb.DropPolicyResponse(unknown=not found)

        return await _answered(work, context)

    async def _once(
        self, request: Ordered, work: Callable[[CallContext, Calls], Awaitable[M]], context: _Context
    ) -> M:
        async def ordered() -> M:
            name, here = self._own(request), self._register.here
            calls = self._register.known(name, request.life)
            # On another thread: a call may have many megabytes.
            digest = await asyncio.to_thread(digest_of_request, request)
            sure = partial(self._register.sure, name, calls, request.lease)
            return await calls.once(request.sequence, digest, sure, lambda: work(here, calls))

        return await _answered(ordered, context)

    def _policy_state(self, policy: str, calls: Calls) -> pb.PolicyState:
        return pb.PolicyState(
            policy=policy,
            step=calls.step,
            sequence=calls.sequence,
            life=calls.life,
            engine=self._engine,
            base_model=self._base,
            lease=calls.lease,
            taken_up=calls.taken_up,
        )

    async def _resting(self, request: pb.ListPoliciesRequest) -> pb.ListPoliciesResponse:
        here = self._register.here
        most = page_size(request.page_size, MOST_LISTED, MOST_LISTED)
        found = await run_blocking(here.resting.after, request.page_token)
        waves, response = here.waves(), pb.ListPoliciesResponse()
        for each in found[:most]:
            if each.policy not in waves:
                entry = response.policies.add(policy=each.policy, step=each.step, sequence=each.sequence)
                entry.life, entry.base_model = each.life, self._base
        if len(found) > most:
            response.next_page_token = found[most - 1].policy
        return response

    def _refuse_other(self, base: str) -> None:
        if base not in {"", self._base}:
            raise BaseModelNotFound(f"base model {base[:300]!r}", f"is not served here; this engine has {self._base}")

    def _own(self, request: _Named) -> str:
        """Return the policy's name. Raises BaseModelNotFound for another base, InvalidRequest if a wave trains it."""
        here = self._register.here
        self._refuse_other(request.base_model)
        name = check_adapter(request.policy)
        if name in here.waves():
            raise InvalidRequest(f"policy {name!r}", "is trained by a wave, which alone may change it")
        return name


async def _answered(work: Callable[[], Awaitable[M]], context: _Context, *, noted: bool = True) -> M:
    try:
        return await work()
    except MintError as error:
        if noted:
            _log.info("training_call_failed", reason=error.reason, message=str(error))
        await context.abort_with_status(to_status(error))
        raise
