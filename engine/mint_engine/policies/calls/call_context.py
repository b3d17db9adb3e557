"""What the Trainer service's calls use once the base is loaded."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from mint_engine.policies.calls.calls import Calls
from mint_engine.policies.stored.announcement_cache import AnnouncementCache
from mint_engine.policies.stored.resting import RestingPolicies
from mint_engine.policies.stored.store import Store
from mint_engine.policies.training_context import TrainingContext
from mint_engine.residency.policy_memory import PolicyMemory
from mint_engine.training.policy import Policy


@dataclass(frozen=True)
class CallContext:
    """`waves` returns the policies that belong to waves here; `refuse_taken` raises InvalidRequest for a name that is
    already taken; `announcement_cache` makes names outlive this engine; `resting` lists policies that were let go."""

    training: TrainingContext
    store: Store
    waves: Callable[[], frozenset[str]]
    refuse_taken: Callable[[str], Awaitable[None]]
    announcement_cache: AnnouncementCache
    resting: RestingPolicies

    @property
    def room(self) -> PolicyMemory:
        """The memory that policies take."""
        return self.training.residency.room

    def copying(self, calls: Calls, nbytes: int = 0) -> AbstractAsyncContextManager[None]:
        """Return a context that holds room for copies while a policy is saved or another state of it is read.

        `nbytes` is what that state takes, which may be larger than the policy.
        """
        return self.room.copying(calls.holder, max(nbytes, self.room.of(calls.holder).copies))

    async def replace(self, calls: Calls, read: Policy) -> None:
        """Replace a policy by a state that was read; meanwhile the larger of the two counts as its memory."""
        needs, before = self.training.step_thread.maker.needs_for(read), self.room.of(calls.holder)
        if (needs.own, needs.device) > (before.own, before.device):
            self.room.take(calls.holder, needs)
        await self.training.step_thread.call(lambda trainer: trainer.replace(read))
        self.room.take(calls.holder, needs)
