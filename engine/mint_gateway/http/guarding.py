"""The HTTP door's guard: whoever bears no known key gets no further than the probes."""

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from mint_contracts.errors import Unauthenticated
from mint_gateway.access import Access
from mint_gateway.answering import LOGGED_LENGTH
from mint_gateway.http.refusing import Handler
from mint_gateway.keys import AUTHORIZATION
from mint_gateway.metrics import Metrics

HEALTH, LIVE = "/health", "/live"

_log = structlog.get_logger()


def guarding(access: Access, metrics: Metrics) -> Middleware:
    """A middleware that raises Unauthenticated for all but what probes ask."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in (HEALTH, LIVE):
            try:
                access.admit(request.headers.get(AUTHORIZATION))
            except Unauthenticated as error:
                metrics.unauthenticated.labels("http").inc()
                call = f"{request.method} {request.path}"[:LOGGED_LENGTH]
                _log.info("unauthenticated", call=call, peer=request.remote, error=str(error))
                raise
        return await handler(request)

    return guard
