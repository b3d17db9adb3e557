"""For how long an engine may take a policy of calls to be its own, though another one may have gone on with it.

An engine that was cut off does not hear of that, but its store tells: whoever goes on with a policy first says so in
it (`Series.take`). What is saved is looked behind each time. Other calls change memory alone, with which nobody else
goes on: before them it is looked now and then, so that a program learns of it while it has lost little.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from mint_contracts.errors import MintError, SourceUnavailable, StaleLease

LOOK_S = 10.0  # between two looks, of a listing each
SURE_S = 60.0  # that a look holds good where the store is away
ANSWER_S, RETRY_S = 5.0, 2.0

_log = structlog.get_logger(__name__)


class LeaseCheck:
    """One policy's, from when its engine was made sure of it. Belongs to the event loop."""

    def __init__(self) -> None:
        self._sure_at = self._looked_at = time.monotonic()
        self._looking: asyncio.Task[None] | None = None

    async def check(self, policy: str, look: Callable[[], Awaitable[None]]) -> None:
        """Have `look` raise StaleLease, where it is due.

        What else it raises counts once it has given no answer for long: that is SourceUnavailable.
        """
        now = time.monotonic()
        sure = now - self._sure_at < SURE_S
        if sure and now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        try:
            await self.look(look)
        except StaleLease:
            raise
        except (MintError, TimeoutError) as error:
            if not sure:
                reason = "may have moved to another engine, and its store cannot be read to check; retry"
                raise SourceUnavailable(f"policy {policy!r}", reason, retry_after_s=RETRY_S) from error
            _log.warning("tenure_unknown", policy=policy, error=str(error))

    async def look(self, look: Callable[[], Awaitable[None]]) -> None:
        """Have `look` raise as it does, and TimeoutError where it gives no answer in time.

        It goes on then, for its thread waits for the store, and a policy has no other look before that has ended.
        """
        async with asyncio.timeout(ANSWER_S):
            while self._looking is not None:  # and what one has seen that began earlier may be so no more
                await asyncio.shield(self._looking)
            self._looking = asyncio.ensure_future(self._look(look))
            await asyncio.shield(self._looking)

    async def _look(self, look: Callable[[], Awaitable[None]]) -> None:
        began = time.monotonic()
        try:
            await look()
            self._sure_at = began
        finally:
            self._looking = None
