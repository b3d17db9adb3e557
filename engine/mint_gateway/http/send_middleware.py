"""Bounding the time that HTTP clients take to read answers, for complete ones as for streams.

A client that keeps its connection open without reading would otherwise occupy one of the door's connections forever.
"""

from aiohttp import web

from mint_gateway.http.error_middleware import Handler
from mint_gateway.slow_clients import NothingTaken, taken


@web.middleware
async def send_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Send the handler's response, and abort the connection of a client that does not read it."""
    try:
        return await sent(request, await handler(request))
    except NothingTaken:
        if request.transport is not None:
            request.transport.abort()  # close() would wait until the buffered data is read
        raise


async def sent(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Send a complete response, unless it was sent already. Raises NothingTaken."""
    await taken(response.prepare(request))
    await taken(response.write_eof())
    return response
