"""Ending requests whose clients do not read their answers, so that they free their place among those in flight.

A client that keeps its connection open without reading would otherwise hold it forever: its transport still answers
keepalives.
"""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import grpc

TAKE_S = 60.0


class NothingTaken(ConnectionAbortedError):
    """A client has not read a piece of its answer for TAKE_S."""

    size = 0  # of the piece, where that is known

    def __init__(self) -> None:
        super().__init__(f"the client has read nothing for {TAKE_S:g} s")


async def taken(sending: Awaitable[object]) -> None:
    """Wait until a client's connection has room for what is sent. Raises NothingTaken after TAKE_S."""
    try:
        async with asyncio.timeout(TAKE_S):
            await sending
    except TimeoutError:
        raise NothingTaken from None


class Writing:
    """Writes the answer to one gRPC call, piece by piece."""

    def __init__(self, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        self._context = context
        self._last: asyncio.Future[None] | None = None

    async def write(self, piece: Any) -> None:
        """Send a piece. Raises NothingTaken; the piece may still arrive, since gRPC cannot take it back.

        A client that disconnects during a write causes CancelledError, as at any other time.
        """
        self._last = asyncio.ensure_future(self._context.write(piece))
        try:
            await taken(asyncio.shield(self._last))
        except asyncio.CancelledError:
            self._last.cancel()
            raise
        except grpc.aio.InternalError as error:  # the write noticed the end of the call before the task did
            raise asyncio.CancelledError(str(error)) from None

    async def end(self, error: NothingTaken) -> None:
        """End the call. Waits first until its last piece is taken or its client has gone, as gRPC requires."""
        if self._last is not None:
            with suppress(grpc.aio.InternalError):  # the client has gone
                await self._last
        await self._context.abort(grpc.StatusCode.CANCELLED, str(error))
