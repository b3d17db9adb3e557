"""How an engine resumes Trainer API policies that it has read from their store: first it claims them there.

The claim of a policy whose resume fails would keep other engines from it, so it has to be taken back.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from mint_contracts.errors import EngineUnavailable, MintError, StaleLease
from mint_engine.background_threads import run_in_background
from mint_engine.policies.call_checkpoints import Found, not_left, rests_of, shelf_of
from mint_engine.policies.call_context import CallContext
from mint_engine.policies.checkpoints import Shelf
from mint_engine.sources.blocking import run_blocking

RETRY_S = 1.0


class Taking:
    """One engine's claims. Belongs to the event loop."""

    def __init__(self) -> None:
        self._untaken: dict[str, set[int]] = {}  # policy -> leases whose claims are yet to be taken back

    @property
    def untaken(self) -> list[str]:
        """The policies that the store still shows as claimed here although their resume failed."""
        return [*self._untaken]

    @asynccontextmanager
    async def taken_up(
        self, here: CallContext, policy: str, lease: int, found: Found, life: int
    ) -> AsyncIterator[None]:
        """A context for installing a policy that is resumed here under `lease`, which fences all older leases.

        An engine that had the policy and was cut off acknowledges no checkpoint newer than `found`, and a drop stays
        a drop. If the context's body fails, the claim is taken back for the next try. Raises EngineUnavailable if
        others have just claimed or saved it, PolicyNotFound as `call_checkpoints.newest`, and a store's errors.
        """
        shelf, listed = shelf_of(here.store, policy), False
        await self.give_back(here, policy)
        if life and await run_blocking(_gone_on, shelf, lease, found):
            await asyncio.sleep(RETRY_S)  # a failed attempt has been taken back by then
            if await run_blocking(_gone_on, shelf, lease, found):
                raise not_left(policy, life)
        try:
            await run_blocking(_take, shelf, policy, lease, found, life)
            if found.record.left:
                listed = True
                await run_in_background(here.resting.forget, rests_of(found.record))
            yield
        except StaleLease as error:
            raise _busy(policy, "is being resumed by another engine") from error
        except BaseException:
            self._untaken.setdefault(policy, set()).add(lease)
            with suppress(MintError):
                await self.give_back(here, policy)
                if listed:
                    await run_in_background(here.resting.note, rests_of(found.record))
            raise

    async def give_back(self, here: CallContext, policy: str) -> None:
        """Take back a policy's claims whose resume failed. Raises a store's errors: call again then."""
        leases = self._untaken.get(policy, set())
        for lease in [*leases]:
            await run_blocking(shelf_of(here.store, policy).give_back, lease)
            leases.discard(lease)
        if not self._untaken.get(policy):
            self._untaken.pop(policy, None)


def _take(shelf: Shelf, policy: str, lease: int, found: Found, life: int) -> None:
    shelf.take(lease)
    if shelf.newest_record() != found.newest_record:
        raise _busy(policy, "was just saved by the engine that has or had it")
    if life and _gone_on(shelf, lease, found):  # perhaps only an attempt that fails: the next try sees that
        raise _busy(policy, "is being resumed by another engine")


def _gone_on(shelf: Shelf, lease: int, found: Found) -> bool:
    """Whether another lease has resumed what was left, without having saved anything since."""
    return any(found.record.lease < each < lease for each in shelf.leases())


def _busy(policy: str, reason: str) -> EngineUnavailable:
    return EngineUnavailable(f"policy {policy!r}", f"{reason}; retry", retry_after_s=RETRY_S)
