"""Bounds the answers to gRPC calls that clients have not read: gRPC keeps each until then, and so does this gateway.

A call's place among those in flight is free again by then, and a client may have any number of calls.
"""

import asyncio
from typing import Any

import grpc

from mint_contracts.byte_budget import ByteBudget
from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_contracts.wire import to_status

MOST_BYTES = 64 << 20  # tests/chart/test_gateway_memory.py compares it with the chart
CALL_BYTES = 32 << 10  # that a call takes by itself, as measured
_TOO_MANY = Overloaded("gateway", "holds too many answers that were not read yet; retry later", retry_after_s=1.0)


class Unread:
    """The answers that clients have not read yet."""

    def __init__(self) -> None:
        self._budget = ByteBudget(MOST_BYTES, "gateway", "holds too much that is unread")

    async def send(self, answer: bytes, client: str, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        """Send an answer, or a part of it, and wait until it is read. Aborts the call if there is no room for it."""
        with self._budget.share(0, client) as share:
            try:
                share.fill(CALL_BYTES + 2 * len(answer))  # gRPC has its own copy
            except (CapacityExceeded, Overloaded):
                await context.abort_with_status(to_status(_TOO_MANY))
            try:
                await context.write(answer)
            except grpc.aio.InternalError as error:  # the write noticed the end of the call before the task did
                raise asyncio.CancelledError(str(error)) from None
