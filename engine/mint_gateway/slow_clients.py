"""What is sent is taken in time, or whoever asked for it loses their place among the requests in flight.

A client that leaves its connection open and reads nothing would keep it for ever: its transport goes on telling that
it is there.
"""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import grpc

TAKE_S = 60.0


class NothingTaken(ConnectionAbortedError):
    """A client has let a piece of its answer lie for TAKE_S."""

    def __init__(self) -> None:
        super().__init__(f"the client has read nothing for {TAKE_S:g} s")


async def taken(sending: Awaitable[object]) -> None:
    """Wait until a client's connection has room for what is sent. Raises NothingTaken."""
    try:
        async with asyncio.timeout(TAKE_S):
            await sending
    except TimeoutError:
        raise NothingTaken from None


class Writing:
    """What one gRPC call is answered, piece by piece."""

    def __init__(self, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        self._context = context
        self._last: asyncio.Future[None] | None = None

    async def write(self, piece: Any) -> None:
        """Raises NothingTaken; the piece is on its way all the same, since gRPC takes none back.

        A client that goes while it is sent a piece is met as one that goes at any other time: by CancelledError.
        """
        self._last = asyncio.ensure_future(self._context.write(piece))
        try:
            await taken(asyncio.shield(self._last))
        except asyncio.CancelledError:
            self._last.cancel()
            raise
        except grpc.aio.InternalError as error:  # the write was told before the task that its call has ended
            raise asyncio.CancelledError(str(error)) from None

    async def end(self, error: NothingTaken) -> None:
        """End the call, which can't be before its last piece is taken, or its client has gone."""
        if self._last is not None:
            with suppress(grpc.aio.InternalError):  # it has gone
                await self._last
        await self._context.abort(grpc.StatusCode.CANCELLED, str(error))
