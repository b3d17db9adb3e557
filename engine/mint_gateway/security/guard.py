"""The gRPC door's guard: a caller without a known key can only use health and reflection."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from mint_contracts.errors import Unauthenticated
from mint_contracts.wire import to_status
from mint_gateway.answering import LOGGED_LENGTH
from mint_gateway.dialling import AUTHORIZATION
from mint_gateway.metrics import Metrics
from mint_gateway.security.access import Access

# Prefixes of the methods that need no key.
OPEN = (f"/{health.SERVICE_NAME}/", f"/{reflection.SERVICE_NAME}/")

_log = structlog.get_logger()

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]


class Guard(grpc.aio.ServerInterceptor):
    """Checks calls before they start; running calls continue even if their key or its scope changes."""

    def __init__(self, access: Access, metrics: Metrics) -> None:
        self._access = access
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Return the call's own handler, or one that refuses the call."""
        if not handler_call_details.method.startswith(OPEN):
            header = dict(handler_call_details.invocation_metadata or ()).get(AUTHORIZATION)
            try:
                self._access.admit(str(header or ""))
            except Unauthenticated as error:
                self._metrics.unauthenticated.labels("grpc").inc()
                return _refusing(error, handler_call_details.method)
        return await continuation(handler_call_details)


def _refusing(error: Unauthenticated, method: str) -> "Handler":
    async def refuse(_: object, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        _log.info("unauthenticated", call=method[:LOGGED_LENGTH], peer=context.peer(), error=str(error))
        await context.abort_with_status(to_status(error))

    # For any kind of call: a stream-stream handler can refuse before it reads anything from the client.
    return grpc.stream_stream_rpc_method_handler(refuse)
