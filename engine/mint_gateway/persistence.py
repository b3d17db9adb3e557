"""How long a client retries one failing call."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import grpc

from mint_contracts.backoff import delay_s
from mint_contracts.wire import from_rpc_error

_OURS = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}  # the caller's own doing: never retried


class Persistence:
    """Decides whether and when one call is retried, for `seconds` after its first failure; not if `is_hopeless`."""

    def __init__(self, seconds: float, is_hopeless: Callable[[grpc.aio.AioRpcError], Awaitable[bool]]) -> None:
        self._is_hopeless = is_hopeless
        self._seconds, self._failures = seconds, 0
        self._until: float | None = None  # set at the first failure: a call may take long before it fails

    async def wait(self, error: grpc.aio.AioRpcError, *, final: bool = False) -> None:
        """Return when the next attempt is due; raise the failure's MintError if there is to be none."""
        failure = from_rpc_error(error)
        self._failures += 1
        now = asyncio.get_running_loop().time()
        self._until = self._until or now + self._seconds
        delay = delay_s(self._failures, first_s=0.1, cap_s=2.0)
        if failure.retry_after_s is not None:
            delay = failure.retry_after_s * random.uniform(1.0, 1.25)  # noqa: S311 - spreads clients
        if final or failure.terminal or error.code() in _OURS:
            raise failure from error
        if now + delay > self._until or await self._is_hopeless(error):
            raise failure from error
        await asyncio.sleep(delay)
