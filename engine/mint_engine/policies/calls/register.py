"""An engine's Trainer API policies, from their creation to the ways in which they leave.

They are created, or resumed from a checkpoint. They leave when a client drops them or a wave takes their name, when
the engine shuts down, and when nobody has called them for long (`rest`): a client that ended silently would otherwise
hold its policy's memory for ever. In the last two cases they are saved, so that any engine can resume them.
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
from mint_engine.policies.calls import call_checkpoints
from mint_engine.policies.calls.call_context import CallContext
from mint_engine.policies.calls.calls import Calls, draining
from mint_engine.policies.calls.claims import Claims
from mint_engine.policies.calls.outlasting import outlast
from mint_engine.training.policy import PolicySettings

MOST_POLICIES = 256
LOADING_RETRY_S, FULL_RETRY_S, MAKING_RETRY_S, DROPPING_RETRY_S = 5.0, 10.0, 0.5, 2.0
SUPERSEDED = "was resumed on another engine while its own was cut off"
CUT_OFF = "had a call under way as the engine lost a rank or its device: that call may be why"
REST_S, LOOK_S = 30 * 60.0, 60.0  # resuming after a rest costs a client seconds

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Register:
    """One engine's Trainer API policies. Belongs to the event loop."""

    def __init__(self) -> None:
        self.context: CallContext | None = None  # None until the base is loaded
        self._calls: dict[str, Calls] = {}
        self._making: dict[Calls, asyncio.Task[None]] = {}  # policies that are still being made
        self._dropped: dict[str, int] = {}  # policy -> dropped life, until the store knows
        self._claims = Claims()
        self._lease = 0  # of the policy that was created last
        self._resuming = asyncio.Lock()
        self._draining = False
        self._saving: list[asyncio.Task[None]] = []

    @property
    def room(self) -> PolicyRoom | None:
        """The memory that waves' policies may take beside Trainer API ones; None until the base is loaded."""
        if self.context is None:
            return None
        memory, room = self.context.room, self.context.training.step_thread.maker.room
        needs = [memory.of(calls.holder) for calls in self._calls.values()]
        device = None
        if room.device is not None and memory.device is not None:
            calls = sum(each.device for each in needs)
            device = msgspec.structs.replace(room.device, budget=memory.device.budget, calls=calls)
        return msgspec.structs.replace(
            room,
            budget=memory.budget,
            calls=sum(each.own for each in needs),
            calls_copies=max((each.copies for each in needs), default=0),
            device=device,
        )

    @property
    def here(self) -> CallContext:
        """The context of calls. Raises EngineUnavailable until the base is loaded."""
        if self.context is None:
            raise EngineUnavailable("engine", "is still loading its base model", retry_after_s=LOADING_RETRY_S)
        return self.context

    def made(self) -> list[tuple[str, Calls]]:
        """Return the policies that are here and made, sorted by name."""
        return [(name, calls) for name, calls in sorted(self._calls.items()) if calls not in self._making]

    def known(self, name: str, life: int) -> Calls:
        """Return a policy that is here, of this `life` if one is given (not 0). Raises PolicyNotFound."""
        calls = self._calls.get(name)
        if calls is None:
            reason = "is not on this engine; resume it from its saved state, or create it"
            raise PolicyNotFound(f"policy {name!r}", reason)
        calls.check_present()
        calls.check_life(life)
        return calls

    def known_made(self, name: str, life: int) -> Calls:
        """As `known`. Raises EngineUnavailable while the policy is being made."""
        calls = self.known(name, life)
        if calls in self._making:
            raise EngineUnavailable(f"policy {name!r}", "is being created; retry", retry_after_s=MAKING_RETRY_S)
        return calls

    async def create(self, name: str, settings: PolicySettings) -> Calls:
        """Create a policy, or return an existing one that is still new and has the same settings.

        Raises InvalidRequest for any other existing one and for a name that could not be published, and Overloaded.
        """
        await self._refuse_dropped(name)
        here, known = self.here, self._calls.get(name)
        if known is None:
            known = self._new(name, settings)
            self._make(known, name, partial(self._fresh, here, known, name, settings))
        else:
            known.check_new(settings)
        return await self._when_made(known, name)

    async def resume(self, name: str, life: int, *, anew: bool = False) -> Calls:
        """Return a policy that is here, or resume it from its newest checkpoint (see `call_checkpoints.newest`).

        With `anew`, wait for its call under way and drop its gradient: its program begins again at its last step.
        """
        await self._refuse_dropped(name)
        here = self.here
        await self._let_go_superseded(here, name)
        known = self._calls.get(name)
        if known is None:
            known = self._new(name, None)
            self._make(known, name, partial(self._resumed, here, known, name, life))
        await self._when_made(known, name)
        known.check_life(life)
        if anew:
            await known.begin_anew(
                lambda: here.training.step_thread.call(lambda trainer: trainer.drop_gradient(name))
            )
        return known

    async def sure(self, name: str, calls: Calls, lease: int) -> None:
        """Raise PolicyNotFound for a call of a policy that another engine has now, or that was meant for another.

        `lease` is the lease under which the client believes it is trained; 0 if not given. Raises SourceUnavailable
        if the store has not answered for long.
        """
        calls.check_lease(lease)
        look = partial(call_checkpoints.refuse_superseded, self.here, name, calls)
        await self.kept(name, calls, lambda: calls.lease_check.check(name, look))

    async def kept(self, name: str, calls: Calls, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` within the call under way and return its result. Raises as it does.

        StaleLease means that another engine has resumed the policy: lets go of it here and raises PolicyNotFound.
        """
        try:
            return await work()
        except StaleLease as error:
            _log.warning("policy_superseded", policy=name, error=str(error))
            calls.end_here(SUPERSEDED)
            await self._let_go(self.here, name, calls)
            raise PolicyNotFound(f"policy {name!r}", f"{SUPERSEDED}: it {error.message}") from error

    async def drop(self, policy: str, life: int = 0, *, gone: bool = False) -> bool:
        """Let go of a policy after the call under way, which frees its name; return False if there is none.

        For a policy that is not here, of this `life` or the latest (0), withdraw its announcements (with `gone` and
        no `life`: whoever made them), and make what an engine left of it not resumable. Raises a store's errors: call
        again then. A policy that is here frees its memory even so, and the store is told later (see `rest`).
        """
        calls, here = self._calls.get(policy), self.context
        if here is None:
            return True  # it is unknown whether there is one
        if calls is None:
            dropped = policy in self._dropped
            await self._tell_dropped(here, policy)
            left = await call_checkpoints.give_up(here, policy, life)
            announced = await here.announcement_cache.withdraw(policy, life, whoever=gone and not life)
            return dropped or left or announced
        calls.check_life(life)
        await calls.end()  # a ready update of it would be applied to the next policy of its name
        self._dropped[policy] = max(calls.life, self._dropped.get(policy, 0))
        await self._let_go(here, policy, calls)
        await self._tell_dropped(here, policy)
        return True

    async def give_way(self, policy: str, since: float) -> None:
        """Let go of a name that has been a wave's `since` then (monotonic seconds), so that no call can take it.

        Raises as `drop`.
        """
        if policy in self._calls or policy in self._dropped:
            await self.drop(policy)
        elif self.context is not None:
            await self.context.announcement_cache.clear(policy, since)

    async def drain(self, timeout_s: float, lost: Callable[[], bool] = lambda: False) -> None:
        """Take no more calls, and save every policy as it is, so that other engines can resume it.

        Waits for at most `timeout_s`; a policy that is not saved by then resumes from its client's last save. So does
        one whose call was under way as the engine was `lost`, even meanwhile: it may be why, and the next engine
        would get that call.
        """
        self._draining = True
        for each in self._calls.values():  # also those that are not saved: what they did now would be lost
            each.refuse()
        here = self.context
        saved = {name: each for name, each in self._calls.items() if not (lost() and each.cut_off)}
        if unsaved := sorted(self._calls.keys() - saved.keys()):
            _log.warning("policies_lost", policies=unsaved, reason=CUT_OFF)
        if here is None or not saved:
            return

        async def save(name: str, calls: Calls) -> None:
            async def begin() -> None:
                if lost() and calls.cut_off:
                    raise EngineUnavailable(f"policy {name!r}", CUT_OFF)
                await call_checkpoints.leave(here, name, calls)

            await calls.leave(begin)

        self._saving = [asyncio.create_task(save(*each)) for each in saved.items()]  # late saves go on
        done, late = await asyncio.wait(self._saving, timeout=timeout_s)
        failed = [error for task in done if (error := task.exception()) is not None]
        errors = [str(each) for each in failed]
        _log.info("policies_left", saved=len(done) - len(failed), late=len(late), errors=errors)

    async def run(self, look_s: float = LOOK_S) -> None:
        """Call `rest` periodically until cancelled."""
        while True:
            await asyncio.sleep(look_s)
            await self.rest(REST_S)

    async def rest(self, idle_s: float) -> None:
        """Save and let go of policies that nobody has called for `idle_s`; they can be resumed from there.

        Their names keep referring to what they announced. A policy that cannot be saved stays here. First tells
        the store of drops and failed resumes that it does not know of yet. After an error that may pass (e.g. the
        store is unavailable), the rest waits for the next time, since a policy's calls wait while it is being saved.
        """
        pending: list[tuple[str, Callable[[CallContext, str], Awaitable[None]]]]
        pending = [(name, self._tell_dropped) for name in self._dropped]
        pending += [(name, self._claims.unclaim) for name in self._claims.leftover]
        for name, tell in pending:
            try:
                await tell(self.here, name)
            except MintError as error:
                _log.warning("store_untold", policy=name, error=str(error))
                if not error.terminal:
                    return
        for name, calls in self.made():
            if self._draining or not calls.is_idle(idle_s):
                continue
            of_it = self.here, name, calls
            revert = partial(self.kept, name, calls, partial(call_checkpoints.revert_leave, *of_it))
            try:
                await calls.rest(partial(self._put_to_rest, *of_it), revert)
            except MintError as error:
                _log.warning("policy_stays", policy=name, error=str(error))
                if not error.terminal:
                    break

    async def _put_to_rest(self, here: CallContext, name: str, calls: Calls) -> None:
        try:
            await call_checkpoints.leave(here, name, calls)
        except TornPolicy as error:  # not resumable: only its client's own saves remain
            _log.warning("policy_unsaved", policy=name, error=str(error))
        except StaleLease as error:  # another engine has resumed it
            _log.warning("policy_superseded", policy=name, error=str(error))
        await self._let_go(here, name, calls)
        _log.info("policy_rests", policy=name, sequence=calls.sequence, step=calls.step)

    async def _tell_dropped(self, here: CallContext, name: str) -> None:
        """Tell the store of a drop that it does not know of yet: that life and earlier ones are no longer resumable.

        Later lives, which may be elsewhere by now, are not affected.
        """
        life = self._dropped.get(name)
        if life is None:
            return
        await call_checkpoints.give_up(here, name, life)
        await here.announcement_cache.withdraw(name, life)
        if self._dropped.get(name) == life:
            del self._dropped[name]

    async def _refuse_dropped(self, name: str) -> None:
        """Tell the store of a drop of this name; raise EngineUnavailable if that fails: the name is not free yet."""
        here = self.here
        try:
            await self._tell_dropped(here, name)
        except MintError as error:
            reason = f"is being dropped, which its store does not yet know ({error}); retry"
            raise EngineUnavailable(f"policy {name!r}", reason, retry_after_s=DROPPING_RETRY_S) from error

    async def _let_go_superseded(self, here: CallContext, name: str) -> None:
        """Let go of a policy that another engine has resumed, if the store answers and says so."""
        calls = self._calls.get(name)
        if calls is None or calls in self._making:
            return
        try:
            await calls.lease_check.look(name, partial(call_checkpoints.refuse_superseded, here, name, calls))
        except StaleLease as error:
            _log.warning("policy_superseded", policy=name, error=str(error))
            await calls.end(SUPERSEDED)
            await self._let_go(here, name, calls)
        except (MintError, TimeoutError) as error:
            _log.warning("lease_unknown", policy=name, error=str(error))  # its next call checks anyway

    async def _let_go(self, here: CallContext, name: str, calls: Calls) -> None:
        """Release a policy's weights and memory, then its name: a policy resumed under it uses the same holder.

        From now on the name refers to what is announced, since another engine may publish it again.
        """
        if self._calls.get(name) is not calls:
            return
        await here.training.step_thread.call(lambda trainer: trainer.drop(name))
        here.room.leave(calls.holder)
        here.training.residency.withdraw(name)
        if self._calls.get(name) is calls:  # unless somebody else has let go of it meanwhile
            del self._calls[name]

    def _new(self, name: str, settings: PolicySettings | None) -> Calls:
        """Add an entry for one more policy. Raises Overloaded, and Draining."""
        if self._draining:
            raise draining()
        if len(self._calls) >= MOST_POLICIES:
            reason = f"already has {MOST_POLICIES} Trainer API policies; drop one"
            raise Overloaded("engine", reason, retry_after_s=FULL_RETRY_S)
        # Newer than the leases of this name that other engines have used, or that this one has dropped (but see
        # `_raise_lease`).
        self._lease = max(self._lease + 1, time.time_ns() // 1_000_000)
        calls = self._calls[name] = Calls(name, self._lease, settings)
        return calls

    def _raise_lease(self, calls: Calls, lease: int) -> None:
        """Raise its lease above its name's last one, which a fast clock may have made, or no save would succeed."""
        calls.lease = self._lease = max(self._lease, lease + 1)

    async def _when_made(self, calls: Calls, name: str) -> Calls:
        if making := self._making.get(calls):
            await outlast(making, name)  # made completely, even if its client disconnects
        else:
            calls.check_present()
        return calls

    async def _fresh(self, here: CallContext, calls: Calls, name: str, settings: PolicySettings) -> None:
        step_thread = here.training.step_thread
        await step_thread.call(lambda trainer: trainer.refuse_known(name))
        await here.refuse_taken(name)  # now, not when it is published: what it has learnt cannot change its name
        earlier = await call_checkpoints.latest_lease(here, name)
        self._raise_lease(calls, earlier)
        if earlier:
            await call_checkpoints.forget_predecessor(here, name)
        calls.life = calls.lease
        here.room.take(calls.holder, await asyncio.to_thread(step_thread.maker.needs, name, settings))
        try:
            policy = await step_thread.make(lambda maker: maker.fresh(name, settings))
            await step_thread.call(lambda trainer: trainer.add(policy))
        except BaseException:
            here.room.leave(calls.holder)
            raise

    async def _resumed(self, here: CallContext, calls: Calls, name: str, life: int) -> None:
        step_thread = here.training.step_thread
        await step_thread.call(lambda trainer: trainer.refuse_known(name))
        async with self._resuming:  # one at a time: a policy's memory is unknown until it is read
            found = await call_checkpoints.newest(here, name, life)
            policy, record = found.policy, found.record
            self._raise_lease(calls, max(record.lease, await call_checkpoints.latest_lease(here, name)))
            calls.life, calls.step = record.life or calls.lease, policy.step
            here.room.take(calls.holder, step_thread.maker.needs_for(policy))
            try:
                async with self._claims.claimed(here, name, calls.lease, found, life):
                    await step_thread.call(lambda trainer: trainer.add(policy))
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
