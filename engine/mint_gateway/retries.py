"""How far one request has come with its engines, and what a failed try means: patience, rounds, backoff."""

import asyncio

import grpc
import msgspec

from mint_contracts.backoff import delay_s
from mint_contracts.errors import BaseModelNotFound, Draining, EngineUnavailable, Internal, Unavailable
from mint_contracts.wire import from_rpc_error


class Patience(msgspec.Struct, frozen=True):
    """Bounds on what happens before the first token."""

    tries: int = 20  # calls to engines
    lost: int = 3  # engines that were there and are gone, with the request
    away_s: float = 10.0  # waiting while no engine can answer, in all
    retry_after_s: float = 2.0  # what a client is told then
    first_backoff_s: float = 0.02
    cap_backoff_s: float = 0.5


class Retries:
    """How far one request has come with its engines."""

    def __init__(self, patience: Patience, deadline: float | None) -> None:
        self._patience = patience
        self._deadline = deadline
        self._give_up_at: float | None = None
        self._rounds = 0
        self.count = 0
        self.lost = 0  # engines that the request was with when they went
        # In this round, by address; None: said nothing of use.
        self.failed: dict[str, grpc.aio.AioRpcError | None] = {}

    def failed_with(self, address: str, error: grpc.aio.AioRpcError, request_id: str) -> None:
        """Note what came of a try. Raises Internal where engine after engine has gone with the request.

        It may be what ends them, and is not handed on until none is left. Of an engine that could not be reached it
        is known that it had none of it, and one that fell silent may be there still.
        """
        self.failed[address] = error
        self.lost += _went(error)
        if self.lost >= self._patience.lost:
            message = f"{self.lost} engines in a row failed while processing it, before its first token"
            why = "it may be the cause and is not retried. See the end of those engines' logs"
            raise Internal(f"request {request_id}", f"{message}; {why}")

    def remaining_s(self) -> float | None:
        """Seconds to the client's deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - asyncio.get_running_loop().time())

    async def pause(self) -> None:
        """A moment between two engines, so that a herd spreads."""
        await asyncio.sleep(delay_s(len(self.failed), first_s=self._patience.first_backoff_s, cap_s=0.1))

    def raise_refusal(self) -> None:
        """If an engine of this round answered at all, its refusal is better news than "unavailable"."""
        refusals = [error for error in self.failed.values() if error is not None and not lost(error)]
        if refusals:
            raise min(refusals, key=lambda error: from_rpc_error(error).retry_after_s or 0.0)

    async def wait(self) -> bool:
        """Wait before a new round; False when patience (or nine tenths of the deadline) is at its end."""
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


def _went(error: grpc.aio.AioRpcError) -> bool:
    """Whether an engine that was there is gone, by what the transport says of it."""
    details = error.details() or ""
    own_word = isinstance(from_rpc_error(error), Draining | EngineUnavailable | BaseModelNotFound)
    return lost(error) and not own_word and "failed to connect" not in details and "keepalive" not in details


def lost(error: grpc.aio.AioRpcError) -> bool:
    """The engine is away, as opposed to having said something. At its address may be another base's by now."""
    failure = from_rpc_error(error)
    if isinstance(failure, Draining | EngineUnavailable | BaseModelNotFound):
        return True
    if type(failure) is Unavailable:  # the transport's own word: no ErrorInfo came with it
        return error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    return error.code() is grpc.StatusCode.INTERNAL and "RST_STREAM" in (error.details() or "")


def another_may_do_better(error: grpc.aio.AioRpcError) -> bool:
    """A failure before the first token that the next engine need not share."""
    retryable = not from_rpc_error(error).terminal and error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    return retryable or lost(error) or error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
