"""How long a client retries one failing call."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable

import grpc

from mint_contracts.backoff import delay_s
from mint_contracts.errors import MintError
from mint_contracts.wire import from_rpc_error

TOLD_AFTER_S = 2.0
_OURS = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}  # the caller's own doing: never retried

Tell = Callable[[MintError, float], None]


class Persistence:
    """Decides whether and when one call is retried, for `seconds` after its first failure; not if `is_hopeless`.

    Calls `tell` once, with the error and the seconds left, before retries go on for longer than TOLD_AFTER_S.
    """

    def __init__(
        self,
        seconds: float,
        is_hopeless: Callable[[grpc.aio.AioRpcError], Awaitable[bool]],
        tell: Tell | None = None,
    ) -> None:
        self._is_hopeless, self._tell = is_hopeless, tell
        self._seconds, self._failures = seconds, 0
        self._until: float | None = None  # set at the first failure: a call may take long before it fails
        self._tell_at = math.inf

    async def wait(self, error: grpc.aio.AioRpcError | MintError, *, final: bool = False) -> None:
        """Return when the next attempt is due; raise the failure's MintError if there is to be none.

        `error` is a MintError if gRPC counts the call a success and the answer is still not whole.
        """
        failed_call = None if isinstance(error, MintError) else error
        failure = error if isinstance(error, MintError) else from_rpc_error(error)
        self._failures += 1
        now = asyncio.get_running_loop().time()
        if self._until is None:
            self._until, self._tell_at = now + self._seconds, now + TOLD_AFTER_S
        delay = delay_s(self._failures, first_s=0.1, cap_s=2.0)
        if failure.retry_after_s is not None:
            delay = failure.retry_after_s * random.uniform(1.0, 1.25)  # noqa: S311 - spreads clients
        if final or failure.terminal or (failed_call is not None and failed_call.code() in _OURS):
            raise failure from failed_call
        if now + delay > self._until or (failed_call is not None and await self._is_hopeless(failed_call)):
            raise failure from failed_call
        if self._tell is not None and now + delay > self._tell_at:
            self._tell_at = math.inf
            self._tell(failure, self._until - now)
        await asyncio.sleep(delay)
