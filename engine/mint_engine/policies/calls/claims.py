"""How an engine resumes Trainer API policies that it has read from their store: first it claims them there.

The claim of a policy whose resume fails would keep other engines from it, so it has to be taken back.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from mint_contracts.errors import EngineUnavailable, MintError, StaleLease
from mint_engine.background_threads import run_in_background
from mint_engine.policies.calls.call_checkpoints import Found, checkpoints_of, not_resumable, resting_policy_of
from mint_engine.policies.calls.call_context import CallContext
from mint_engine.policies.stored.checkpoints import Checkpoints
from mint_engine.sources.blocking import run_blocking

RETRY_S = 1.0


class Claims:
    """One engine's claims. Belongs to the event loop."""

    def __init__(self) -> None:
        self._leftover: dict[str, set[int]] = {}  # policy -> leases whose claims are yet to be taken back

    @property
    def leftover(self) -> list[str]:
        """The policies that the store still shows as claimed here although their resume failed."""
        return [*self._leftover]

    @asynccontextmanager
    async def claimed(
        self, here: CallContext, policy: str, lease: int, found: Found, life: int
    ) -> AsyncIterator[None]:
        """A context for installing a policy that is resumed here under `lease`, which fences all older leases.

        An engine that had the policy and was cut off acknowledges no checkpoint newer than `found`, and a drop stays
        a drop. If the context's body fails, the claim is taken back for the next try. Raises EngineUnavailable if
        others have just claimed or saved it, PolicyNotFound as `call_checkpoints.newest`, and a store's errors.
        """
        checkpoints, listed = checkpoints_of(here.store, policy), False
        await self.unclaim(here, policy)
        if life and await run_blocking(_gone_on, checkpoints, lease, found):
            await asyncio.sleep(RETRY_S)  # a failed attempt has been taken back by then
            if await run_blocking(_gone_on, checkpoints, lease, found):
                raise not_resumable(policy, life)
        try:
            await run_blocking(_claim, checkpoints, policy, lease, found, life)
            if found.record.resumable:
                listed = True
                await run_in_background(here.resting.forget, resting_policy_of(found.record))
            yield
        except StaleLease as error:
            raise _busy(policy, "is being resumed by another engine") from error
        except BaseException:
            self._leftover.setdefault(policy, set()).add(lease)
            with suppress(MintError):
                await self.unclaim(here, policy)
                if listed:
                    await run_in_background(here.resting.note, resting_policy_of(found.record))
            raise

    async def unclaim(self, here: CallContext, policy: str) -> None:
        """Take back a policy's claims whose resume failed. Raises a store's errors: call again then."""
        leases = self._leftover.get(policy, set())
        for lease in [*leases]:
            await run_blocking(checkpoints_of(here.store, policy).series.unclaim, lease)
            leases.discard(lease)
        if not self._leftover.get(policy):
            self._leftover.pop(policy, None)


def _claim(checkpoints: Checkpoints, policy: str, lease: int, found: Found, life: int) -> None:
    checkpoints.series.claim(lease)
    if checkpoints.newest_record() != found.newest_record:
        raise _busy(policy, "was just saved by the engine that has or had it")
    if life and _gone_on(checkpoints, lease, found):  # perhaps only an attempt that fails: the next try sees that
        raise _busy(policy, "is being resumed by another engine")


def _gone_on(checkpoints: Checkpoints, lease: int, found: Found) -> bool:
    """Whether another lease has resumed what was left, without having saved anything since."""
    return any(found.record.lease < each < lease for each in checkpoints.series.leases())


def _busy(policy: str, reason: str) -> EngineUnavailable:
    return EngineUnavailable(f"policy {policy!r}", f"{reason}; retry", retry_after_s=RETRY_S)
