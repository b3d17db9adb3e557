"""gRPC's health service, which needs no key: clients have only so many of its streams open."""

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from mint_contracts.errors import InvalidRequest, Overloaded
from mint_contracts.shares import Shares
from mint_contracts.wire import to_status

# tests/chart/test_gateway_memory.py compares both with the chart.
MOST_WATCHES = 1024
LONGEST_NAME = 256  # of a service, in characters


class Health(health.aio.HealthServicer):  # type: ignore[misc]  # it has no types
    """Tells whether services are ready. An address watches at most as many times as it leaves to others."""

    def __init__(self) -> None:
        super().__init__()
        self._watches = Shares(MOST_WATCHES)

    async def Watch(  # noqa: N802 - the proto's name
        self, request: health_pb2.HealthCheckRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        """Tell a service's health now and whenever it changes."""
        address = context.peer().rpartition(":")[0]
        if len(request.service) > LONGEST_NAME:
            problem = f"is a name of more than {LONGEST_NAME} characters"
            await context.abort_with_status(to_status(InvalidRequest("service", problem)))
        if not self._watches.may_take(address):
            problem = "has as many watches of its health from this address as it may; end some, or use Check"
            await context.abort_with_status(to_status(Overloaded("gateway", problem, retry_after_s=1.0)))
        self._watches.take(address)
        try:
            await super().Watch(request, context)
        finally:
            self._watches.give_back(address)
