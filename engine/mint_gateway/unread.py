"""Bounds what clients of gRPC calls have not read: gRPC keeps each answer, and each call, until then.

A call's place among those in flight is free again by then, and a client may have any number of calls.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from mint_contracts.byte_budget import ByteBudget
from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_contracts.wire import to_status

# tests/chart/test_gateway_memory.py compares both with the chart.
MOST_BYTES = 192 << 20
OPEN_BYTES = 16 << 20  # of calls that need no key: these must not take the others' memory
CALL_BYTES = 32 << 10  # that a call takes by itself, as measured
SHORT_BYTES = 2 << 10  # of an answer: one that tells of what a call has done is not refused for so little


class Unread:
    """The calls whose clients have not read all of their answers yet."""

    def __init__(self, most: int) -> None:
        """`most` is in bytes."""
        self._budget = ByteBudget(most, "gateway", "holds too much that is unread")

    @contextmanager
    def held(self, client: str, size: int = CALL_BYTES, own: int = 0) -> Iterator[None]:
        """Account for a client's call, or for `size` bytes without its `own`, in the block. Raises Overloaded."""
        with self._budget.share(own, client) as share:
            try:
                share.fill(size)
            except (CapacityExceeded, Overloaded):
                message = "holds too many answers that were not read yet; retry later"
                raise Overloaded("gateway", message, retry_after_s=1.0) from None
            yield

    async def send(self, answer: bytes, client: str, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        """Send an answer, or a part of it, and wait until it is read. Aborts the call if there is no room for it."""
        try:
            with self.held(client, 2 * len(answer), SHORT_BYTES):  # gRPC has its own copy
                await context.write(answer)
        except Overloaded as error:
            await context.abort_with_status(to_status(error))
        except grpc.aio.InternalError as error:  # the write noticed the end of the call before the task did
            raise asyncio.CancelledError(str(error)) from None
