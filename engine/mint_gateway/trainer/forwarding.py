"""Forwarding Trainer calls to the engine that has the policy; a new policy goes to its home, or where there is room.

If an engine goes away before it answers, it is unknown whether the call took effect. The call is sent again until an
engine answers; its sequence number makes that harmless.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc
import msgspec

from mint_contracts import training_pb2 as pb
from mint_contracts.errors import (
    EngineUnavailable,
    InvalidRequest,
    MintError,
    Overloaded,
    PermissionDenied,
    PolicyNotFound,
)
from mint_contracts.names import check_adapter
from mint_contracts.wire import from_rpc_error
from mint_gateway.channels import Channels
from mint_gateway.choose import home_order
from mint_gateway.explain import why_none_answers
from mint_gateway.retries import Patience, Retries, is_away
from mint_gateway.route import Router
from mint_gateway.security.scope import OUT_OF_SCOPE
from mint_gateway.trainer.policy_locations import ASK_S, PolicyLocation, PolicyLocator, policy_not_found, trainers
from mint_gateway.trainer.resting import resting
from mint_gateway.view import Engine, MapView, incomplete

RETRY_S = 2.0
SHOWN_S = 3.0  # that a Publish waits for its engine's report, which is usually sent and read within 0.1 s
SHOWN_LOOK_S = 0.01

Request = (
    pb.CreatePolicyRequest
    | pb.ResumePolicyRequest
    | pb.GetPolicyRequest
    | pb.ForwardBackwardRequest
    | pb.OptimStepRequest
    | pb.SaveStateRequest
    | pb.LoadStateRequest
    | pb.PublishRequest
    | pb.DropPolicyRequest
)


# Calls valid for a policy that no engine has: its home creates or resumes it, or drops the name that it left behind.
_HOME = frozenset({"CreatePolicy", "ResumePolicy", "DropPolicy"})
# Before these calls all engines are asked who has the policy, even if one is remembered.
_ASK_ALL = _HOME | {"GetPolicy"}


class CallTrail(msgspec.Struct):
    """The route of one call, for its log line."""

    call: str
    policy: str = ""
    base_model: str = ""
    engine: str = ""


class Forwarding:
    """Sends calls to engines. An instance belongs to one event loop."""

    def __init__(self, router: Router, channels: Channels, patience: Patience) -> None:
        self._router, self._channels, self._patience = router, channels, patience
        self._locator = PolicyLocator(channels)

    async def forward(self, request: Request, remaining_s: float | None, trail: CallTrail) -> Any:
        """Return the right engine's answer to `trail.call`; `remaining_s` is the client's deadline, if it has one.

        Raises MintError for the gateway's own errors and AioRpcError for errors from an engine.
        """
        trail.policy = check_adapter(request.policy)
        deadline = None if remaining_s is None else asyncio.get_running_loop().time() + remaining_s
        retries, sent_before = Retries(self._patience, deadline), False
        if trail.call in _ASK_ALL:
            self._locator.forget(self._view(request, trail).base, trail.policy)
        while True:
            view = self._view(request, trail)
            request.base_model = view.base
            try:
                answer = await self._round(view, request, retries, trail)
            except EngineUnavailable:
                sent_before = sent_before or trail.engine != ""
                if not await retries.wait():
                    raise
                continue
            if isinstance(answer, pb.DropPolicyResponse) and sent_before:
                answer.unknown = False  # the first time may have dropped it
            if isinstance(answer, pb.PublishResponse) and answer.uri:
                await self._shown(trail, answer.uri, retries)
            return answer

    async def list(self, base_model: str, within_s: float = ASK_S) -> pb.ListPoliciesResponse:
        """List the policies on all engines, of one base or of all, within the key's scope."""
        views, response = self._router.views(base_model), pb.ListPoliciesResponse()
        asked = [(view, engine) for view in views for engine in trainers(view, self._router.now(view))]
        answers = await asyncio.gather(*(self._list(engine, within_s) for _, engine in asked))
        for (view, engine), answer in zip(asked, answers, strict=True):
            if answer is None:
                response.silent.append(engine.name)
            else:
                response.policies.extend(each for each in answer.policies if view.scope.adapter(each.policy))
        response.policies.sort(key=lambda each: (each.base_model, each.policy, each.life))
        return response

    async def resting(self, request: pb.ListPoliciesRequest) -> pb.ListPoliciesResponse:
        """Return a page of resting policies. Raises InvalidRequest."""
        return await resting(self._router, self._channels, request)

    async def _shown(self, trail: CallTrail, uri: str, retries: Retries) -> None:
        """Wait until requests for the name get what was published at `uri`; at most SHOWN_S: it is published anyway.

        The engine has it, but this gateway only learns that from the engine's next report.
        """
        remaining, loop = retries.remaining_s(), asyncio.get_running_loop()
        until = loop.time() + (SHOWN_S if remaining is None else min(SHOWN_S, 0.9 * remaining))
        with suppress(MintError):
            while loop.time() < until:
                view = self._router.find(trail.base_model)
                if self._router.now(view).map_away or view.answers_with(trail.policy, trail.engine, uri):
                    return
                await asyncio.sleep(SHOWN_LOOK_S)

    async def _list(self, engine: Engine, within_s: float) -> pb.ListPoliciesResponse | None:
        async with self._channels.use(engine.record.address) as stubs:
            try:
                return await stubs.trainer.ListPolicies(pb.ListPoliciesRequest(), timeout=within_s)
            except grpc.aio.AioRpcError:
                return None

    async def _round(self, view: MapView, request: Request, retries: Retries, trail: CallTrail) -> Any:
        """Return the first engine's answer. Raises EngineUnavailable if a new round may succeed."""
        full: list[grpc.aio.AioRpcError] = []
        places = await self._places(view, request, trail)
        if isinstance(request, pb.DropPolicyRequest) and not request.gone:
            places, copies = places[:1], places[1:]
            for each in copies:  # before the policy itself: once it is gone, they would be found in its place
                await self._drop_copy(view, each, request, retries, trail)
        for place in places:
            try:
                return await self._ask(view, place, request, retries, trail)
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(error)
                if place.remembered and isinstance(failure, PolicyNotFound):
                    return await self._round(view, request, retries, trail)  # asks all engines this time
                if not isinstance(failure, Overloaded):
                    raise
                full.append(error)
        raise min(full, key=lambda error: from_rpc_error(error).retry_after_s or 0.0)

    async def _ask(
        self, view: MapView, place: PolicyLocation, request: Request, retries: Retries, trail: CallTrail
    ) -> Any:
        """Return one engine's answer. Raises AioRpcError for its own errors, EngineUnavailable if it went away."""
        trail.engine = place.engine
        try:
            async with self._channels.use(place.address) as stubs:
                answer = await getattr(stubs.trainer, trail.call)(request, timeout=retries.remaining_s())
        except grpc.aio.AioRpcError as error:
            self._locator.forget(view.base, trail.policy)
            if is_away(error):  # do not try another engine: this one may have executed the call
                message = f"went away during the call ({error.code().name}); retry"
                raise EngineUnavailable(f"engine {place.engine!r}", message, retry_after_s=RETRY_S) from error
            raise
        self._locator.remember(view.base, trail.policy, place)
        return answer

    async def _places(self, view: MapView, request: Request, trail: CallTrail) -> Sequence[PolicyLocation]:
        """Return where to send a call, at least one place, in order: the next is tried if one has no room.

        A drop goes to all engines that have the policy.
        """
        now = self._router.now(view)
        # A policy that exists, with any life, is neither created nor resumed elsewhere.
        life = 0 if isinstance(request, pb.CreatePolicyRequest | pb.ResumePolicyRequest) else request.life
        if isinstance(request, pb.DropPolicyRequest):
            request.gone = False
        try:
            if isinstance(request, pb.DropPolicyRequest):
                return await self._locator.find_all(view, now, trail.policy, life)
            return [await self._locator.find(view, now, trail.policy, life)]
        except PolicyNotFound:
            if trail.call not in _HOME:
                raise
        if isinstance(request, pb.DropPolicyRequest):
            request.gone = True
        able = [engine for engine in trainers(view, now) if engine.record.ready]
        if not able:
            raise EngineUnavailable(view.base, why_none_answers(view, "", now), retry_after_s=RETRY_S)
        homes = home_order(trail.policy, able, now)
        return [PolicyLocation(engine.name, engine.record.address, remembered=False) for engine, _ in homes]

    async def _drop_copy(
        self, view: MapView, place: PolicyLocation, request: pb.DropPolicyRequest, retries: Retries, trail: CallTrail
    ) -> None:
        try:
            await self._ask(view, place, request, retries, trail)
        except grpc.aio.AioRpcError as error:
            if not isinstance(from_rpc_error(error), PolicyNotFound):
                raise

    def _view(self, request: Request, trail: CallTrail) -> MapView:
        """Return the view of the request's base. Raises MintError if it does not train or is out of scope."""
        view = self._router.find(request.base_model)
        trail.base_model = view.base
        if not view.scope.adapter(trail.policy):
            if isinstance(request, pb.CreatePolicyRequest):
                raise PermissionDenied(f"policy {trail.policy!r}", f"is {OUT_OF_SCOPE}")
            raise policy_not_found(view, trail.policy)
        if isinstance(request, pb.LoadStateRequest) and request.saved_by and not view.scope.adapter(request.saved_by):
            raise PermissionDenied(f"policy {request.saved_by!r}", f"is {OUT_OF_SCOPE}")
        if view.record is None:
            raise incomplete(view.base)
        if not view.record.trains:
            message = "does not train; set spec.training.store of its BaseModel"
            raise InvalidRequest(f"base model {view.base!r}", message)
        return view
