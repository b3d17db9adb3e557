"""The gRPC Trainer service: an engine's training primitives, over policies that no wave trains.

The compute is that of the waves' policies: calls of many clients share forward and backward.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import grpc
import msgspec
import structlog
from google.protobuf.message import Message

from mint_contracts import training_pb2 as pb
from mint_contracts import training_pb2_grpc
from mint_contracts.errors import (
    BaseModelNotFound,
    EngineUnavailable,
    InvalidRequest,
    MintError,
    Overloaded,
    PolicyNotFound,
)
from mint_contracts.names import check_adapter
from mint_contracts.records import PolicyRoom
from mint_contracts.wire import to_status
from mint_engine.aside import aside
from mint_engine.policies import keepsakes, revisions
from mint_engine.policies.calls import Calls, draining
from mint_engine.policies.copying import packing
from mint_engine.policies.opened import Open
from mint_engine.policies.primitives import (
    Ordered,
    batch_of_request,
    digest_of_request,
    optimizer_of_request,
    settings_of,
    told_of,
)
from mint_engine.policies.series import Name
from mint_engine.training.policy import PolicySettings

MOST_POLICIES = 256
LOADING_RETRY_S, FULL_RETRY_S, MAKING_RETRY_S = 5.0, 10.0, 0.5

M = TypeVar("M", bound=Message)
_Named = Ordered | pb.CreatePolicyRequest | pb.ResumePolicyRequest | pb.GetPolicyRequest | pb.DropPolicyRequest
_Context = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger(__name__)


class TrainerService(training_pb2_grpc.TrainerServicer):
    """The servicer of an engine of `base` ("namespace/name"). Owned by the event loop."""

    def __init__(self, base: str, engine: str) -> None:
        self._base, self._engine = base, engine
        self.open: Open | None = None  # None until the base is loaded
        self._calls: dict[str, Calls] = {}
        self._making: dict[Calls, asyncio.Task[None]] = {}  # whose policies are not there yet
        self._lease = 0  # of the policy that was created last
        self._resuming = asyncio.Lock()
        self._parting = False
        self._saving: list[asyncio.Task[None]] = []

    @property
    def room(self) -> PolicyRoom | None:
        """What waves' policies may take of host memory here, beside those of calls; None until the base is loaded."""
        if self.open is None:
            return None
        needs = [self.open.room.of(calls.holder) for calls in self._calls.values()]
        return msgspec.structs.replace(
            self.open.means.desk.maker.room,
            budget=self.open.room.budget,
            calls=sum(each.own for each in needs),
            calls_copies=max((each.copies for each in needs), default=0),
        )

    async def CreatePolicy(self, request: pb.CreatePolicyRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        """A new policy; asking again for the same one, while it is new still, is no mistake."""

        async def work() -> pb.PolicyState:
            here, name, told = self._open(), self._own(request), settings_of(request)
            known = self._calls.get(name)
            if known is None:
                known = self._new(name, told)
                self._make(known, name, partial(self._fresh, here, known, name, told))
            else:
                known.check_new(told)
            return await self._made(name, known)

        return await _answered(work, context)

    async def ResumePolicy(self, request: pb.ResumePolicyRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        """One that has ended with its engine, from its newest checkpoint; asking again for the same is no mistake."""

        async def work() -> pb.PolicyState:
            here, name = self._open(), self._own(request)
            known = self._calls.get(name)
            if known is None:
                known = self._new(name, None)
                self._make(known, name, partial(self._resumed, here, known, name, request.life))
            await self._made(name, known)
            known.check_life(request.life)
            return self._told(name, known)

        return await _answered(work, context)

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        """How far a policy has come, without waiting for the call of it that is under way."""

        async def work() -> pb.PolicyState:
            self._open()
            name = self._own(request)
            calls = self._known(name, request.life)
            if calls in self._making:
                raise EngineUnavailable(f"policy {name!r}", "is being made; retry", retry_after_s=MAKING_RETRY_S)
            return self._told(name, calls)

        return await _answered(work, context, noted=False)  # gateways ask every engine for what one of them has

    async def ListPolicies(  # noqa: N802
        self, request: pb.ListPoliciesRequest, context: _Context
    ) -> pb.ListPoliciesResponse:
        """All that are here."""

        async def work() -> pb.ListPoliciesResponse:
            self._refuse_other(request.base_model)
            made = [(name, calls) for name, calls in sorted(self._calls.items()) if calls not in self._making]
            return pb.ListPoliciesResponse(policies=[self._told(*each) for each in made])

        return await _answered(work, context)

    async def ForwardBackward(  # noqa: N802
        self, request: pb.ForwardBackwardRequest, context: _Context
    ) -> pb.ForwardBackwardResponse:
        """Add the gradients of a loss over examples."""

        async def work(here: Open, _: Calls) -> pb.ForwardBackwardResponse:
            # On another thread: a batch may have millions of routes to check.
            batch = await asyncio.to_thread(batch_of_request, request, here.means.desk.routes)
            return told_of((await here.means.desk.learn(batch, None)).outcome)

        return await self._once(request, work, context)

    async def OptimStep(self, request: pb.OptimStepRequest, context: _Context) -> pb.OptimStepResponse:  # noqa: N802
        """Take one step along the gradients."""

        async def work(here: Open, calls: Calls) -> pb.OptimStepResponse:
            name, optimizer = request.policy, optimizer_of_request(request)
            step = await here.means.desk.step(name, optimizer)
            calls.step = step.step
            return pb.OptimStepResponse(step=step.step, grad_norm=step.grad_norm, skipped=step.skipped)

        return await self._once(request, work, context)

    async def SaveState(self, request: pb.SaveStateRequest, context: _Context) -> pb.SaveStateResponse:  # noqa: N802
        """Write a checkpoint; it is durable when this returns."""

        async def work(here: Open, calls: Calls) -> pb.SaveStateResponse:
            return pb.SaveStateResponse(uri=await keepsakes.save(here, request.policy, calls, request.sequence))

        return await self._once(request, work, context)

    async def LoadState(self, request: pb.LoadStateRequest, context: _Context) -> pb.PolicyState:  # noqa: N802
        """Go on from one of the policy's own checkpoints."""

        async def work(here: Open, calls: Calls) -> pb.PolicyState:
            async with here.copying(calls):
                read, loaded = await keepsakes.load(here, request.policy, request.uri)
                step = read.step  # of what the step thread owns from now on
                await here.replace(calls, read)
            calls.step = step
            if loaded is not None:
                self._follow(calls, loaded.lease)
            told = self._told(request.policy, calls)
            told.sequence = request.sequence
            return told

        return await self._once(request, work, context)

    async def Publish(self, request: pb.PublishRequest, context: _Context) -> pb.PublishResponse:  # noqa: N802
        """Make the policy's weights a revision: durable and served when this returns, by any engine soon after."""

        async def work(here: Open, calls: Calls) -> pb.PublishResponse:
            policy, name = request.policy, Name(calls.lease, request.sequence)
            await here.refuse_taken(policy)
            async with here.room.copying(calls.holder, here.room.of(calls.holder).published):
                copy = await here.means.desk.parts(lambda trainer: packing(trainer, policy, here.means.dtype))
                told, packed = await aside(revisions.publish, here.store, policy, name, copy)
            await here.herald.announce(policy, calls.life, name, told.source)
            here.means.places.offer(policy, told.source, packed)
            return pb.PublishResponse(revision=told.revision, uri=told.source.uri)

        return await self._once(request, work, context)

    async def DropPolicy(self, request: pb.DropPolicyRequest, context: _Context) -> pb.DropPolicyResponse:  # noqa: N802
        """Let a policy go, and what its name means; what it has saved and published stays in the store."""

        async def work() -> pb.DropPolicyResponse:
            self._open()
            name = self._own(request)
            if (calls := self._calls.get(name)) is not None:
                calls.check_life(request.life)
            await self.leave(name, request.life, gone=request.gone)
            return pb.DropPolicyResponse()

        return await _answered(work, context)

    async def leave(self, policy: str, life: int = 0, *, gone: bool = False) -> None:
        """Let a policy of calls go, once the call under way has ended: its name is free.

        One that is not here any more, of this `life` or the latest (0), may have published before this engine
        started, or anywhere where it is known to be `gone`, and an engine may have left it. Raises the errors of a
        store, which may know of that: the policy is then to be let go of again.
        """
        calls, here = self._calls.get(policy), self.open
        if here is None:
            return
        if calls is None:
            await keepsakes.give_up(here, policy, life)
            await here.herald.withdraw(policy, life, whoever=gone and not life)
            return
        await calls.end()  # an update of it that is ready would be taken by a policy of the same name
        await keepsakes.give_up(here, policy, 0)  # an earlier life's, too
        await here.herald.withdraw(policy, calls.life)
        if self._calls.get(policy) is calls:
            del self._calls[policy]
            means = here.means
            means.places.withdraw(policy)
            await means.desk.call(lambda trainer: trainer.drop(policy))
            means.places.room.leave(calls.holder)

    async def give_way(self, policy: str, since: float) -> None:
        """Let go of a name that `waves` has told of `since` then (monotonic seconds), so that no call can take it.

        Raises as `leave`.
        """
        if policy in self._calls:
            await self.leave(policy)
        elif self.open is not None:
            await self.open.herald.clear(policy, since)

    async def part(self, timeout_s: float) -> None:
        """Take no more calls, and save every policy as it is, for other engines to go on with.

        Within a bound: what does not come to be saved is where its program has saved it last.
        """
        self._parting = True
        here = self.open
        if here is None or not self._calls:
            return

        async def save(name: str, calls: Calls) -> None:
            await calls.part(lambda: keepsakes.save(here, name, calls, calls.sequence, left=True))

        self._saving = [asyncio.create_task(save(*each)) for each in self._calls.items()]  # late ones go on
        done, late = await asyncio.wait(self._saving, timeout=timeout_s)
        failed = [error for task in done if (error := task.exception()) is not None]
        errors = [str(each) for each in failed]
        _log.info("policies_left", saved=len(done) - len(failed), late=len(late), errors=errors)

    def _new(self, name: str, told: PolicySettings | None) -> Calls:
        """A place for one more policy. Raises Overloaded, and Draining."""
        if self._parting:
            raise draining()
        if len(self._calls) >= MOST_POLICIES:
            said = f"trains {MOST_POLICIES} policies of calls; drop one"
            raise Overloaded("engine", said, retry_after_s=FULL_RETRY_S)
        # Later than those of policies of this name that other engines have trained, or this one has dropped.
        self._lease = max(self._lease + 1, time.time_ns() // 1_000_000)
        calls = self._calls[name] = Calls(name, self._lease, told)
        return calls

    async def _made(self, name: str, calls: Calls) -> pb.PolicyState:
        if making := self._making.get(calls):
            await asyncio.shield(making)  # its client may go away: it is made, or it is not known
        else:
            calls.check_there()
        return self._told(name, calls)

    async def _fresh(self, here: Open, calls: Calls, name: str, told: PolicySettings) -> None:
        desk = here.means.desk
        await desk.call(lambda trainer: trainer.refuse_known(name))
        here.room.take(calls.holder, await asyncio.to_thread(desk.maker.needs, name, told))
        try:
            policy = await desk.make(lambda maker: maker.fresh(name, told))
            await desk.call(lambda trainer: trainer.put(policy))
        except BaseException:
            here.room.leave(calls.holder)
            raise

    async def _resumed(self, here: Open, calls: Calls, name: str, life: int) -> None:
        desk = here.means.desk
        await desk.call(lambda trainer: trainer.refuse_known(name))
        async with self._resuming:  # of what is read is not known before how much it takes
            policy, record = await keepsakes.newest(here, name, life)
            calls.lease = self._lease = max(self._lease, record.lease + 1)
            calls.life, calls.step = record.life or calls.lease, policy.step
            here.room.take(calls.holder, policy.needs(here.means.dtype))
            try:
                await keepsakes.take_up(here, name, record)
                await desk.call(lambda trainer: trainer.put(policy))
            except BaseException:
                here.room.leave(calls.holder)
                await keepsakes.put_back(here, name, record)
                raise
        calls.sequence = record.sequence

    def _make(self, calls: Calls, name: str, work: Callable[[], Awaitable[None]]) -> None:
        async def make() -> None:
            try:
                await calls.first(work)
            except BaseException:
                if self._calls.get(name) is calls:
                    del self._calls[name]
                raise
            finally:
                del self._making[calls]

        self._making[calls] = asyncio.create_task(make())

    async def _once(self, request: Ordered, work: Callable[[Open, Calls], Awaitable[M]], context: _Context) -> M:
        async def ordered() -> M:
            here, name = self._open(), self._own(request)
            calls = self._known(name, request.life)
            # On another thread: a call may be of many megabytes.
            digest = await asyncio.to_thread(digest_of_request, request)
            return await calls.once(request.sequence, digest, lambda: work(here, calls))

        return await _answered(ordered, context)

    def _follow(self, calls: Calls, lease: int) -> None:
        """What goes on from a checkpoint comes after it, though another engine's clock has been ahead of ours."""
        if lease > calls.lease:
            calls.lease = self._lease = max(self._lease, lease) + 1

    def _open(self) -> Open:
        if self.open is None:
            raise EngineUnavailable("engine", "is still loading its base model", retry_after_s=LOADING_RETRY_S)
        return self.open

    def _told(self, policy: str, calls: Calls) -> pb.PolicyState:
        return pb.PolicyState(
            policy=policy,
            step=calls.step,
            sequence=calls.sequence,
            life=calls.life,
            engine=self._engine,
            base_model=self._base,
            lease=calls.lease,
        )

    def _known(self, policy: str, life: int) -> Calls:
        calls = self._calls.get(policy)
        if calls is None:
            said = "is not on this engine; resume it from what it saved, or create it"
            raise PolicyNotFound(f"policy {policy!r}", said)
        calls.check_there()
        calls.check_life(life)
        return calls

    def _refuse_other(self, base: str) -> None:
        if base not in {"", self._base}:
            raise BaseModelNotFound(f"base model {base[:300]!r}", f"is not served here; this engine has {self._base}")

    def _own(self, request: _Named) -> str:
        """The policy's name, unless it is of another base, or a wave trains it."""
        self._refuse_other(request.base_model)
        name = check_adapter(request.policy)
        if self.open is not None and name in self.open.waves():
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
