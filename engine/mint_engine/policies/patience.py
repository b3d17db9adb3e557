"""Retries on the event loop after errors that pass by themselves. (`retry` does the same on threads.)"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Protocol, TypeVar

import structlog

from mint_contracts.backoff import delay_s
from mint_contracts.errors import MintError, Overloaded, RewardUnavailable, SourceUnavailable
from mint_engine.policies.halt import Halt

ATTEMPTS = 12  # about three minutes with the longest waits
TOLD_FROM, TOLD_AFTER_S = 4, 10.0  # attempts, or the time that they take; shorter trouble is not reported
FIRST_RETRY_S, LONGEST_RETRY_S = 0.2, 20.0
# Unavailable services, and resources taken by others (requests' places, slots, disk space): these come back in time.
AWAY = (RewardUnavailable, SourceUnavailable, Overloaded)

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Patiently(Protocol):
    """Retries work after errors that pass by themselves."""

    async def __call__(self, work: Callable[[], Awaitable[T]], what: str, /) -> T:
        """Return the result of `work`, or raise its final error; `what` names the work in reports."""
        ...


def wait_after(error: MintError, attempt: int) -> float:
    """Return the seconds to wait after a failure, the `attempt`-th in a row; the error may ask for more."""
    delay = delay_s(attempt, first_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S)
    return max(delay, min(error.retry_after_s or 0.0, LONGEST_RETRY_S))


class Patience:
    """One policy's retries. `trouble` holds, by work being retried, its last error; changes call `on_change`."""

    def __init__(self, policy: str, on_change: Callable[[], None]) -> None:
        self._policy, self._on_change = policy, on_change
        self.trouble: dict[str, MintError] = {}

    async def __call__(
        self, work: Callable[[], Awaitable[T]], what: str, lasts: Callable[[], bool], halt: Halt | None = None
    ) -> T:
        """Return the result of `work`. Raises its first terminal error, or the last of `ATTEMPTS` others.

        While `lasts()`, or with a `halt`, retry without limit what is only unavailable (`AWAY`: storage, rewards,
        room). A halt ends the waits between attempts by raising Halted: an order to stop makes no failure of them.
        """
        attempt, now = 0, asyncio.get_running_loop().time
        began = now()
        try:
            while True:
                try:
                    return await work()
                except MintError as error:
                    attempt += 1
                    waits = isinstance(error, AWAY) and (halt is not None or lasts())
                    if error.terminal or (attempt >= ATTEMPTS and not waits):
                        raise
                    wait_s = wait_after(error, attempt)
                    _log.warning(
                        "tried_again", policy=self._policy, what=what, error=str(error), in_s=round(wait_s, 2)
                    )
                    if attempt >= TOLD_FROM or now() - began >= TOLD_AFTER_S:
                        self.trouble[what] = error
                        self._on_change()
                async with halt.within(0.0) if halt is not None else nullcontext():
                    await asyncio.sleep(wait_s)
        finally:
            if self.trouble.pop(what, None) is not None:
                self._on_change()
