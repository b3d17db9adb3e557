"""Answers by HTTP go out within the time that they are taken in, whole ones as pieces of a stream do.

A client that leaves its connection open and reads nothing would keep it for ever, one of so many that the door has.
"""

from aiohttp import web

from mint_gateway.http.refusing import Handler
from mint_gateway.slow_clients import NothingTaken, taken


@web.middleware
async def sending(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Send what the handler answers, and cut off who does not take it."""
    try:
        return await sent(request, await handler(request))
    except NothingTaken:
        if request.transport is not None:
            request.transport.abort()  # to close it would wait until what lies there is read
        raise


async def sent(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Send the whole of an answer, unless it is sent already. Raises NothingTaken."""
    await taken(response.prepare(request))
    await taken(response.write_eof())
    return response
