"""How an engine goes on with policies of calls that it has read from their store: first it says so there.

What says so of a policy that is not gone on with after all bars others from it, and has to be taken back.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from mint_contracts.errors import EngineUnavailable, MintError, StaleLease
from mint_engine.aside import aside
from mint_engine.policies.call_checkpoints import Found, not_left, rests_of, shelf_of
from mint_engine.policies.call_context import CallContext
from mint_engine.policies.checkpoints import Shelf
from mint_engine.sources.asking import asked

RETRY_S = 1.0


class Taking:
    """One engine's. Belongs to the event loop."""

    def __init__(self) -> None:
        self._untaken: dict[str, set[int]] = {}  # leases that are yet to be taken back, by policy

    @property
    def untaken(self) -> list[str]:
        """The policies of which the store says that they are gone on with here, and is yet to say otherwise."""
        return [*self._untaken]

    @asynccontextmanager
    async def taken_up(
        self, here: CallContext, policy: str, lease: int, found: Found, life: int
    ) -> AsyncIterator[None]:
        """Around what puts a policy in its place that goes on here: under this lease, and from then on no older one.

        An engine that had it, and was cut off, acknowledges no checkpoint behind `found`; who drops it has dropped
        it. What could not be put there is as it was, for the next try. Raises EngineUnavailable where others have
        just been at it, PolicyNotFound as `call_checkpoints.newest`, and the errors of a store.
        """
        shelf, listed = shelf_of(here.store, policy), False
        await self.give_back(here, policy)
        if life and await asked(_gone_on, shelf, lease, found):
            await asyncio.sleep(RETRY_S)  # who merely tried has taken that back by then
            if await asked(_gone_on, shelf, lease, found):
                raise not_left(policy, life)
        try:
            await asked(_take, shelf, policy, lease, found, life)
            if found.record.left:
                listed = True
                await aside(here.resting.forget, rests_of(found.record))
            yield
        except StaleLease as error:
            raise _busy(policy, "is being resumed by another engine; retry") from error
        except BaseException:
            self._untaken.setdefault(policy, set()).add(lease)
            with suppress(MintError):
                await self.give_back(here, policy)
                if listed:
                    await aside(here.resting.note, rests_of(found.record))
            raise

    async def give_back(self, here: CallContext, policy: str) -> None:
        """Have the store say of no lease any more that was not taken up after all.

        Raises its errors: it is to be asked again then.
        """
        leases = self._untaken.get(policy, set())
        for lease in [*leases]:
            await asked(shelf_of(here.store, policy).give_back, lease)
            leases.discard(lease)
        if not self._untaken.get(policy):
            self._untaken.pop(policy, None)


def _take(shelf: Shelf, policy: str, lease: int, found: Found, life: int) -> None:
    shelf.take(lease)
    if shelf.newest_record() != found.newest_record:
        raise _busy(policy, "was just saved by the engine that has or had it; retry")
    if life and _gone_on(shelf, lease, found):  # or who does it merely tries: that is seen by the next try
        raise _busy(policy, "is being resumed by another engine; retry")


def _gone_on(shelf: Shelf, lease: int, found: Found) -> bool:
    """Whether somebody has gone on with what was left, and has not saved anything since."""
    return any(found.record.lease < each < lease for each in shelf.leases())


def _busy(policy: str, reason: str) -> EngineUnavailable:
    return EngineUnavailable(f"policy {policy!r}", f"{reason}; retry", retry_after_s=RETRY_S)
