"""The HTTP door's guard: a client without a known key can only use the probes and the page's own files."""

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from mint_contracts.errors import Unauthenticated
from mint_gateway.answering import LOGGED_LENGTH
from mint_gateway.dialling import AUTHORIZATION
from mint_gateway.http.error_middleware import Handler
from mint_gateway.metrics import Metrics
from mint_gateway.page.files import FILES
from mint_gateway.security.access import Access

HEALTH, LIVE = "/health", "/live"
_OPEN = frozenset({HEALTH, LIVE, *FILES})

_log = structlog.get_logger()


def auth_middleware(access: Access, metrics: Metrics) -> Middleware:
    """Return a middleware that raises Unauthenticated for a bad key, except for probes and the page's own files.

    After these the connection is closed, as after the error: without a key, nobody keeps one.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in _OPEN:
            response = await handler(request)
            response.force_close()
            return response
        try:
            access.admit(request.headers.get(AUTHORIZATION))
        except Unauthenticated as error:
            metrics.unauthenticated.labels("http").inc()
            call = f"{request.method} {request.path}"[:LOGGED_LENGTH]
            _log.info("unauthenticated", call=call, peer=request.remote, error=str(error))
            raise
        return await handler(request)

    return guard
