"""Doing a thing again after errors that go away by themselves. (`retry` does so on threads.)"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from mint_contracts.backoff import delay_s
from mint_contracts.errors import MintError

ATTEMPTS = 12  # with the longest waits some three minutes
FIRST_RETRY_S, LONGEST_RETRY_S = 0.2, 20.0

T = TypeVar("T")
_log = structlog.get_logger(__name__)


async def patiently(work: Callable[[], Awaitable[T]], policy: str, what: str) -> T:
    """What `work` gives. Raises its first terminal error, or the last of many others."""
    attempt = 0
    while True:
        try:
            return await work()
        except MintError as error:
            attempt += 1
            if error.terminal or attempt >= ATTEMPTS:
                raise
            wait_s = delay_s(attempt, first_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S)
            wait_s = max(wait_s, min(error.retry_after_s or 0.0, LONGEST_RETRY_S))
            _log.warning("tried_again", policy=policy, what=what, error=str(error), in_s=round(wait_s, 2))
        await asyncio.sleep(wait_s)
