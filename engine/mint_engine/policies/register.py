"""An engine's policies of Trainer calls: how they come, and the ways in which they go.

They are created, or resumed from what was saved. They go when a program drops them or a wave takes their name; when
the engine is told to end; and when nobody has called them for long (`rest`): a program that has ended without a word
would hold its policy's memory for ever. In these last two cases what is there is saved, for any engine to go on with.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import msgspec
import structlog

from mint_contracts.errors import EngineUnavailable, MintError, Overloaded, PolicyNotFound, StaleLease, TornPolicy
from mint_contracts.records import PolicyRoom
from mint_engine.policies import call_checkpoints
from mint_engine.policies.call_context import CallContext
from mint_engine.policies.calls import Calls, draining
from mint_engine.policies.taking import Taking
from mint_engine.training.policy import PolicySettings

MOST_POLICIES = 256
LOADING_RETRY_S, FULL_RETRY_S, MAKING_RETRY_S, DROPPING_RETRY_S = 5.0, 10.0, 0.5, 2.0
SUPERSEDED = "was resumed on another engine while its own was cut off"
REST_S, LOOK_S = 30 * 60.0, 60.0  # what goes on after a rest costs its program seconds

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Register:
    """One engine's. Belongs to the event loop."""

    def __init__(self) -> None:
        self.context: CallContext | None = None  # None until the base is loaded
        self._calls: dict[str, Calls] = {}
        self._making: dict[Calls, asyncio.Task[None]] = {}  # whose policies are not there yet
        self._dropped: dict[str, int] = {}  # lives whose store is yet to be told, by policy
        self._taking = Taking()
        self._lease = 0  # of the policy that was created last
        self._resuming = asyncio.Lock()
        self._parting = False
        self._saving: list[asyncio.Task[None]] = []

    @property
    def room(self) -> PolicyRoom | None:
        """What waves' policies may take of host memory here, beside those of calls; None until the base is loaded."""
        if self.context is None:
            return None
        needs = [self.context.room.of(calls.holder) for calls in self._calls.values()]
        return msgspec.structs.replace(
            self.context.training.step_thread.maker.room,
            budget=self.context.room.budget,
            calls=sum(each.own for each in needs),
            calls_copies=max((each.copies for each in needs), default=0),
        )

    @property
    def here(self) -> CallContext:
        """What policies are trained with. Raises EngineUnavailable until the base is loaded."""
        if self.context is None:
            raise EngineUnavailable("engine", "is still loading its base model", retry_after_s=LOADING_RETRY_S)
        return self.context

    def made(self) -> list[tuple[str, Calls]]:
        """All that are here, by name."""
        return [(name, calls) for name, calls in sorted(self._calls.items()) if calls not in self._making]

    def known(self, name: str, life: int) -> Calls:
        """A policy that is here, of this `life` if one is given (not 0). Raises PolicyNotFound."""
        calls = self._calls.get(name)
        if calls is None:
            reason = "is not on this engine; resume it from its saved state, or create it"
            raise PolicyNotFound(f"policy {name!r}", reason)
        calls.check_there()
        calls.check_life(life)
        return calls

    def known_made(self, name: str, life: int) -> Calls:
        """As `known`. Raises EngineUnavailable where it is being made."""
        calls = self.known(name, life)
        if calls in self._making:
            raise EngineUnavailable(f"policy {name!r}", "is being created; retry", retry_after_s=MAKING_RETRY_S)
        return calls

    async def create(self, name: str, settings: PolicySettings) -> Calls:
        """A new policy, or the one of that name where it is as new and of the same settings. Raises InvalidRequest
        for another, and Overloaded."""
        await self._refuse_dropped(name)
        here, known = self.here, self._calls.get(name)
        if known is None:
            known = self._new(name, settings)
            self._make(known, name, partial(self._fresh, here, known, name, settings))
        else:
            known.check_new(settings)
        return await self._there(known)

    async def resume(self, name: str, life: int) -> Calls:
        """A policy that is here, or else goes on from its newest checkpoint (see `call_checkpoints.newest`)."""
        await self._refuse_dropped(name)
        here = self.here
        await self._let_go_superseded(here, name)
        known = self._calls.get(name)
        if known is None:
            known = self._new(name, None)
            self._make(known, name, partial(self._resumed, here, known, name, life))
        await self._there(known)
        known.check_life(life)
        return known

    async def sure(self, name: str, calls: Calls, lease: int) -> None:
        """Raise PolicyNotFound for a call of a policy that is another engine's by now, or was meant to be.

        `lease` is what its program takes it to be trained under, 0 where that is not given. Raises SourceUnavailable
        where the store has not answered for long.
        """
        calls.check_lease(lease)
        look = partial(call_checkpoints.refuse_superseded, self.here, name, calls)
        await self.kept(name, calls, lambda: calls.lease_check.check(name, look))

    async def kept(self, name: str, calls: Calls, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` gives, by the call under way. Raises as it does.

        But PolicyNotFound where another engine has gone on with the policy, which is let go of then.
        """
        try:
            return await work()
        except StaleLease as error:
            _log.warning("policy_superseded", policy=name, error=str(error))
            calls.end_here(SUPERSEDED)
            await self._let_go(self.here, name, calls)
            raise PolicyNotFound(f"policy {name!r}", f"{SUPERSEDED}: it {error.message}") from error

    async def drop(self, policy: str, life: int = 0, *, gone: bool = False) -> None:
        """Let a policy go, once the call under way has ended: its name is free.

        One that is not here any more, of this `life` or the latest (0), may have published before this engine
        started, or anywhere where it is known to be `gone`, and an engine may have left it. Raises the errors of a
        store, which may know of that: the policy is then to be let go of again. One that is here takes no memory from
        then on, and is let go of by itself once the store answers.
        """
        calls, here = self._calls.get(policy), self.context
        if here is None:
            return
        if calls is None:
            await self._tell_dropped(here, policy)
            await call_checkpoints.give_up(here, policy, life)
            await here.announcement_cache.withdraw(policy, life, whoever=gone and not life)
            return
        calls.check_life(life)
        await calls.end()  # an update of it that is ready would be taken by a policy of the same name
        self._dropped[policy] = max(calls.life, self._dropped.get(policy, 0))
        await self._let_go(here, policy, calls)
        await self._tell_dropped(here, policy)

    async def give_way(self, policy: str, since: float) -> None:
        """Let go of a name that `waves` has told of `since` then (monotonic seconds), so that no call can take it.

        Raises as `drop`.
        """
        if policy in self._calls or policy in self._dropped:
            await self.drop(policy)
        elif self.context is not None:
            await self.context.announcement_cache.clear(policy, since)

    async def part(self, timeout_s: float) -> None:
        """Take no more calls, and save every policy as it is, for other engines to go on with.

        Within a bound: what does not come to be saved is where its program has saved it last.
        """
        self._parting = True
        here = self.context
        if here is None or not self._calls:
            return

        async def save(name: str, calls: Calls) -> None:
            await calls.part(lambda: call_checkpoints.leave(here, name, calls))

        self._saving = [asyncio.create_task(save(*each)) for each in self._calls.items()]  # late ones go on
        done, late = await asyncio.wait(self._saving, timeout=timeout_s)
        failed = [error for task in done if (error := task.exception()) is not None]
        errors = [str(each) for each in failed]
        _log.info("policies_left", saved=len(done) - len(failed), late=len(late), errors=errors)

    async def run(self, look_s: float = LOOK_S) -> None:
        """Have policies `rest`, until cancelled."""
        while True:
            await asyncio.sleep(look_s)
            await self.rest(REST_S)

    async def rest(self, idle_s: float) -> None:
        """Save what nobody has called for so long, and let go of it: its next call goes on with what was saved.

        What its name means stays. What can't be saved stays here; where the store is away say, all wait for the next
        time: a call of a policy that is being saved waits for that. So does what the store is yet to be told: of
        drops, and of policies that were not gone on with after all.
        """
        pending: list[tuple[str, Callable[[CallContext, str], Awaitable[None]]]]
        pending = [(name, self._tell_dropped) for name in self._dropped]
        pending += [(name, self._taking.give_back) for name in self._taking.untaken]
        for name, tell in pending:
            try:
                await tell(self.here, name)
            except MintError as error:
                _log.warning("store_untold", policy=name, error=str(error))
                if not error.terminal:
                    return
        for name, calls in self.made():
            if self._parting or not calls.is_idle(idle_s):
                continue
            of_it = self.here, name, calls
            stay = partial(self.kept, name, calls, partial(call_checkpoints.stay, *of_it))
            try:
                await calls.rest(partial(self._put_to_rest, *of_it), stay)
            except MintError as error:
                _log.warning("policy_stays", policy=name, error=str(error))
                if not error.terminal:
                    break

    async def _put_to_rest(self, here: CallContext, name: str, calls: Calls) -> None:
        try:
            await call_checkpoints.leave(here, name, calls)
        except TornPolicy as error:  # nobody could go on with it: what its program has saved itself is all there is
            _log.warning("policy_unsaved", policy=name, error=str(error))
        except StaleLease as error:  # another engine has gone on with it
            _log.warning("policy_superseded", policy=name, error=str(error))
        await self._let_go(here, name, calls)
        _log.info("policy_rests", policy=name, sequence=calls.sequence, step=calls.step)

    async def _tell_dropped(self, here: CallContext, name: str) -> None:
        """Have the store know of a drop, unless it does: nothing of that life or an earlier one comes back.

        What a later one does elsewhere meanwhile stays as it is.
        """
        life = self._dropped.get(name)
        if life is None:
            return
        await call_checkpoints.give_up(here, name, life)
        await here.announcement_cache.withdraw(name, life)
        if self._dropped.get(name) == life:
            del self._dropped[name]

    async def _refuse_dropped(self, name: str) -> None:
        """Raise EngineUnavailable for a name that is free once the store knows of its drop."""
        here = self.here
        try:
            await self._tell_dropped(here, name)
        except MintError as error:
            reason = f"is being dropped, which its store does not yet know ({error}); retry"
            raise EngineUnavailable(f"policy {name!r}", reason, retry_after_s=DROPPING_RETRY_S) from error

    async def _let_go_superseded(self, here: CallContext, name: str) -> None:
        """Of a policy that another engine has gone on with, as far as the store tells now."""
        calls = self._calls.get(name)
        if calls is None or calls in self._making:
            return
        try:
            await calls.lease_check.look(partial(call_checkpoints.refuse_superseded, here, name, calls))
        except StaleLease as error:
            _log.warning("policy_superseded", policy=name, error=str(error))
            await calls.end(SUPERSEDED)
            await self._let_go(here, name, calls)
        except (MintError, TimeoutError) as error:
            _log.warning("tenure_unknown", policy=name, error=str(error))  # its next call is to be sure, anyway

    async def _let_go(self, here: CallContext, name: str, calls: Calls) -> None:
        """Its name is free last of all: who goes on with it has memory by the same holder.

        What the name means is from now on what is announced: another engine may publish it anew.
        """
        if self._calls.get(name) is not calls:
            return
        await here.training.step_thread.call(lambda trainer: trainer.drop(name))
        here.room.leave(calls.holder)
        here.training.places.withdraw(name)
        if self._calls.get(name) is calls:  # and nobody else has let go of it meanwhile
            del self._calls[name]

    def _new(self, name: str, settings: PolicySettings | None) -> Calls:
        """A place for one more policy. Raises Overloaded, and Draining."""
        if self._parting:
            raise draining()
        if len(self._calls) >= MOST_POLICIES:
            reason = f"already has {MOST_POLICIES} Trainer API policies; drop one"
            raise Overloaded("engine", reason, retry_after_s=FULL_RETRY_S)
        # Later than those of policies of this name that other engines have trained, or this one has dropped (but see
        # `_succeed`).
        self._lease = max(self._lease + 1, time.time_ns() // 1_000_000)
        calls = self._calls[name] = Calls(name, self._lease, settings)
        return calls

    def _succeed(self, calls: Calls, lease: int) -> None:
        """Have it come after others of its name, though their engines' clocks were ahead, or nothing can be saved."""
        calls.lease = self._lease = max(self._lease, lease + 1)

    async def _there(self, calls: Calls) -> Calls:
        if making := self._making.get(calls):
            await asyncio.shield(making)  # its client may go away: it is made, or it is not known
        else:
            calls.check_there()
        return calls

    async def _fresh(self, here: CallContext, calls: Calls, name: str, settings: PolicySettings) -> None:
        step_thread = here.training.step_thread
        await step_thread.call(lambda trainer: trainer.refuse_known(name))
        earlier = await call_checkpoints.latest_lease(here, name)
        self._succeed(calls, earlier)
        if earlier:
            await call_checkpoints.succeed(here, name)
        calls.life = calls.lease
        here.room.take(calls.holder, await asyncio.to_thread(step_thread.maker.needs, name, settings))
        try:
            policy = await step_thread.make(lambda maker: maker.fresh(name, settings))
            await step_thread.call(lambda trainer: trainer.put(policy))
        except BaseException:
            here.room.leave(calls.holder)
            raise

    async def _resumed(self, here: CallContext, calls: Calls, name: str, life: int) -> None:
        step_thread = here.training.step_thread
        await step_thread.call(lambda trainer: trainer.refuse_known(name))
        async with self._resuming:  # of what is read is not known before how much it takes
            found = await call_checkpoints.newest(here, name, life)
            policy, record = found.policy, found.record
            self._succeed(calls, max(record.lease, await call_checkpoints.latest_lease(here, name)))
            calls.life, calls.step = record.life or calls.lease, policy.step
            here.room.take(calls.holder, step_thread.maker.needs_for(policy))
            try:
                async with self._taking.taken_up(here, name, calls.lease, found, life):
                    await step_thread.call(lambda trainer: trainer.put(policy))
            except BaseException:
                here.room.leave(calls.holder)
                raise
        calls.sequence = calls.taken_up = record.sequence

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
