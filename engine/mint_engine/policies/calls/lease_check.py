"""How long an engine may assume that a Trainer API policy is still its own, though another may have resumed it.

An engine that was cut off does not notice that, but the store tells: an engine that resumes a policy first says so
there (`Series.claim`). Each save checks the store anyway. Other calls only change memory, which nobody else resumes
from; before them the store is checked now and then, so that a client notices while it has lost little.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from mint_contracts.errors import MintError, SourceUnavailable, StaleLease
from mint_engine.policies.calls.outlasting import outlast

LOOK_S = 10.0  # between two looks, each of which lists a folder
SURE_S = 60.0  # that a look stays valid while the store is unavailable
ANSWER_S, RETRY_S = 5.0, 2.0

_log = structlog.get_logger(__name__)


class LeaseCheck:
    """One policy's check; the policy counts as sure when this is created. Belongs to the event loop."""

    def __init__(self) -> None:
        self._sure_at = self._looked_at = time.monotonic()
        self._looking: asyncio.Task[None] | None = None

    async def check(self, policy: str, look: Callable[[], Awaitable[None]]) -> None:
        """Run `look` if it is due; it raises StaleLease if another engine has the policy.

        Its other errors are only logged, until no look has succeeded for `SURE_S`: then raises SourceUnavailable.
        """
        now = time.monotonic()
        sure = now - self._sure_at < SURE_S
        if sure and now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        try:
            await self.look(policy, look)
        except StaleLease:
            raise
        except (MintError, TimeoutError) as error:
            if not sure:
                reason = "may have moved to another engine, and its store cannot be read to check; retry"
                raise SourceUnavailable(f"policy {policy!r}", reason, retry_after_s=RETRY_S) from error
            _log.warning("lease_unknown", policy=policy, error=str(error))

    async def look(self, policy: str, look: Callable[[], Awaitable[None]]) -> None:
        """Run `look` and raise its errors, or TimeoutError if it does not finish in time.

        After a timeout it goes on, since its thread waits for the store; no other look begins before it has ended.
        """
        async with asyncio.timeout(ANSWER_S):
            while self._looking is not None:  # its result or error may be outdated, since it began earlier
                await asyncio.wait({self._looking})
            self._looking = asyncio.create_task(self._look(look))
            await outlast(self._looking, policy)

    async def _look(self, look: Callable[[], Awaitable[None]]) -> None:
        began = time.monotonic()
        try:
            await look()
            self._sure_at = began
        finally:
            self._looking = None
