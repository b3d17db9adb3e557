"""What the Trainer's calls work with once the base is loaded."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from mint_engine.policies.announcement_cache import AnnouncementCache
from mint_engine.policies.calls import Calls
from mint_engine.policies.resting import Resting
from mint_engine.policies.store import Store
from mint_engine.policies.training_context import TrainingContext
from mint_engine.residency.room import Room
from mint_engine.training.policy import Policy


@dataclass(frozen=True)
class CallContext:
    """`waves` tells the policies that belong to waves here; `refuse_taken` raises InvalidRequest for a name that is
    somebody else's; `announcement_cache` has names outlive this engine; `resting` tells what was let go of."""

    training: TrainingContext
    store: Store
    waves: Callable[[], frozenset[str]]
    refuse_taken: Callable[[str], Awaitable[None]]
    announcement_cache: AnnouncementCache
    resting: Resting

    @property
    def room(self) -> Room:
        """For what policies take of host memory."""
        return self.training.places.room

    def copying(self, calls: Calls) -> AbstractAsyncContextManager[None]:
        """Room for saving a policy, or for reading another state of it."""
        return self.room.copying(calls.holder, self.room.of(calls.holder).copies)

    async def replace(self, calls: Calls, read: Policy) -> None:
        """Put a state that was read into its policy's place; the larger of both counts meanwhile."""
        needs = self.training.step_thread.maker.needs_for(read)
        if needs.own > self.room.of(calls.holder).own:
            self.room.take(calls.holder, needs)
        await self.training.step_thread.call(lambda trainer: trainer.replace(read))
        self.room.take(calls.holder, needs)
