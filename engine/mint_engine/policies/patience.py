"""Doing a thing again after errors that go away by themselves. (`retry` does so on threads.)"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Protocol, TypeVar

import structlog

from mint_contracts.backoff import delay_s
from mint_contracts.errors import MintError, Overloaded, RewardUnavailable, SourceUnavailable
from mint_engine.policies.halt import Halt

ATTEMPTS = 12  # with the longest waits some three minutes
TOLD_FROM = 4  # attempts: what went away before is nobody's concern
FIRST_RETRY_S, LONGEST_RETRY_S = 0.2, 20.0
# Others' services, and places that others have taken: requests', slots, a disk's. They come back in their own time.
AWAY = (RewardUnavailable, SourceUnavailable, Overloaded)

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Patiently(Protocol):
    """Does a thing again after errors that go away by themselves."""

    async def __call__(self, work: Callable[[], Awaitable[T]], what: str, /) -> T:
        """What `work` gives, and what it raises for good; `what` names it to people."""
        ...


class Patience:
    """One policy's. `trouble` tells, by what is being done, why it is done again; `on_change` hears of that."""

    def __init__(self, policy: str, on_change: Callable[[], None]) -> None:
        self._policy, self._on_change = policy, on_change
        self.trouble: dict[str, MintError] = {}

    async def __call__(
        self, work: Callable[[], Awaitable[T]], what: str, lasts: Callable[[], bool], halt: Halt | None = None
    ) -> T:
        """What `work` gives. Raises its first terminal error, or the last of many others.

        While it `lasts`, what is away is waited for (storage, rewards, room), however long that takes. Nothing is
        done again against a `halt`, which raises Halted then.
        """
        attempt = 0
        try:
            while True:
                try:
                    return await work()
                except MintError as error:
                    attempt += 1
                    waits = isinstance(error, AWAY) and lasts()
                    if error.terminal or (attempt >= ATTEMPTS and not waits):
                        raise
                    wait_s = delay_s(attempt, first_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S)
                    wait_s = max(wait_s, min(error.retry_after_s or 0.0, LONGEST_RETRY_S))
                    self._tell(what, error, attempt, wait_s)
                async with halt.within(0.0) if halt is not None else nullcontext():
                    await asyncio.sleep(wait_s)
        finally:
            if self.trouble.pop(what, None) is not None:
                self._on_change()

    def _tell(self, what: str, error: MintError, attempt: int, wait_s: float) -> None:
        _log.warning("tried_again", policy=self._policy, what=what, error=str(error), in_s=round(wait_s, 2))
        if attempt >= TOLD_FROM:
            self.trouble[what] = error
            self._on_change()
