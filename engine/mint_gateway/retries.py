"""Retrying one request on several engines: patience, rounds, backoff, and what a failed attempt means."""

import asyncio

import grpc
import msgspec

from mint_contracts.backoff import delay_s
from mint_contracts.errors import (
    BaseModelNotFound,
    Draining,
    EngineUnavailable,
    Internal,
    InvalidRequest,
    Unavailable,
)
from mint_contracts.wire import from_rpc_error


class Patience(msgspec.Struct, frozen=True):
    """Bounds on retries: before the first token, and each time that an engine is lost after it."""

    tries: int = 20  # calls to engines
    deaths: int = 3  # engines that died with the request
    away_s: float = 10.0  # total time to wait while no engine can answer
    retry_after_s: float = 2.0  # sent to the client after that
    first_backoff_s: float = 0.02
    cap_backoff_s: float = 0.5


class Retries:
    """The attempts of one request so far. A round tries each engine at most once."""

    def __init__(self, patience: Patience, deadline: float | None) -> None:
        self._patience = patience
        self._deadline = deadline
        self._give_up_at: float | None = None
        self._rounds = 0
        self.count = 0
        self.deaths = 0  # engines that died with the request
        self._dead: set[str] = set()  # their addresses, without those that have answered since
        # Failed attempts of this round, by address; None: the error says nothing useful to the client.
        self.failed: dict[str, grpc.aio.AioRpcError | None] = {}

    def failed_with(self, address: str, error: grpc.aio.AioRpcError, request_id: str, *, begun: bool) -> None:
        """Record a failed attempt. Raises Internal once `Patience.deaths` engines have died with the request.

        The request may be what kills them, so it must not be passed on until none is left. Engines that could not be
        reached do not count, since they never had it, nor do those that fell silent, since they may still run. One
        that had `begun` the request has also died if it says itself that it cannot go on, unless it drains. Until it
        has ended it says so each time, which counts once.
        """
        self.failed[address] = error
        if _died(error, begun=begun and address not in self._dead):
            self.deaths += 1
            self._dead.add(address)
        if self.deaths >= self._patience.deaths:
            message = f"{self.deaths} engines in a row failed while processing it"
            why = "it may be the cause and is not retried. See the end of those engines' logs"
            raise Internal(f"request {request_id}", f"{message}; {why}")

    def begin_anew(self, address: str) -> None:
        """Have the whole patience again, since this engine answered; those that died with the request still count."""
        self.count, self._rounds, self._give_up_at = 0, 0, None
        self._dead.discard(address)

    def remaining_s(self) -> float | None:
        """Return the seconds until the client's deadline, or None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - asyncio.get_running_loop().time())

    async def pause(self) -> None:
        """Wait briefly between two engines, so that a herd of requests spreads out."""
        await asyncio.sleep(delay_s(len(self.failed), first_s=self._patience.first_backoff_s, cap_s=0.1))

    def raise_refusal(self) -> None:
        """Raise the refusal of an engine in this round, if any: it says more than "unavailable"."""
        refusals = [error for error in self.failed.values() if error is not None and not is_away(error)]
        if refusals:
            raise min(refusals, key=lambda error: from_rpc_error(error).retry_after_s or 0.0)

    async def wait(self) -> bool:
        """Wait before a new round. Return False once the patience, or nine tenths of the deadline, is used up."""
        now = asyncio.get_running_loop().time()
        if self._give_up_at is None:
            remaining = self.remaining_s()
            away_s = self._patience.away_s if remaining is None else min(self._patience.away_s, 0.9 * remaining)
            self._give_up_at = now + away_s
        if now >= self._give_up_at:
            return False
        self._rounds += 1
        self.failed.clear()
        delay = delay_s(self._rounds, first_s=self._patience.first_backoff_s, cap_s=self._patience.cap_backoff_s)
        await asyncio.sleep(min(delay, self._give_up_at - now))
        return True


def _died(error: grpc.aio.AioRpcError, *, begun: bool) -> bool:
    """Return whether a running engine died, judging by the transport's error or, if it had begun, by its own."""
    away = Draining if begun else Draining | EngineUnavailable | BaseModelNotFound
    own_word = isinstance(from_rpc_error(error), away)
    return may_have_it(error) and not own_word and "keepalive" not in (error.details() or "")


def may_have_it(error: grpc.aio.AioRpcError) -> bool:
    """Return whether who went away may have had the request before, and have executed it."""
    return is_away(error) and "failed to connect" not in (error.details() or "")


def is_away(error: grpc.aio.AioRpcError) -> bool:
    """Return whether the engine is away, rather than refusing. Its address may belong to another base by now."""
    failure = from_rpc_error(error)
    if isinstance(failure, Draining | EngineUnavailable | BaseModelNotFound):
        return True
    if type(failure) is Unavailable:  # the transport's own error: it came without ErrorInfo
        return error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    return error.code() is grpc.StatusCode.INTERNAL and "RST_STREAM" in (error.details() or "")


def another_may_do_better(error: grpc.aio.AioRpcError) -> bool:
    """Return whether another engine may succeed after this failure before the first token."""
    failure, code = from_rpc_error(error), error.code()
    if isinstance(failure, InvalidRequest):  # also gRPC's own refusal of one that is too large, RESOURCE_EXHAUSTED
        return False
    retryable = not failure.terminal and code is not grpc.StatusCode.DEADLINE_EXCEEDED
    return retryable or is_away(error) or code is grpc.StatusCode.RESOURCE_EXHAUSTED
