"""Error responses over HTTP, all in the form that OpenAI's clients read."""

import math
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import grpc
import msgspec
import structlog
from aiohttp import web

from mint_contracts.errors import Internal, InvalidRequest, MintError, Unauthenticated
from mint_contracts.wire import from_rpc_error
from mint_gateway.http import openai_response

REQUEST_ID = "X-Request-Id"
NAMED = web.RequestKey("named", str)  # the request's ID in the log, once it is known

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = structlog.get_logger()


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn an error raised by the handler into a response."""
    try:
        return await handler(request)
    except web.HTTPException as error:  # unknown path or method, or a body that is too large
        refused = InvalidRequest(f"{request.method} {request.path[:200]}", error.text or error.reason)
        allowed = {name: value for name, value in error.headers.items() if name == "Allow"}
        return reply(openai_response.refusal(refused), status=error.status, headers=allowed | _named(request))
    except (MintError, grpc.aio.AioRpcError) as error:
        return _refused(request, ours(error))
    except ConnectionError:
        raise
    except Exception:  # noqa: BLE001 - whatever it is, the client gets an answer, and the log has the details
        _log.exception("HTTP request failed", path=request.path[:200])
        return _refused(request, Internal("gateway", "failed with an internal error; see its log"))


def ours(error: MintError | grpc.aio.AioRpcError) -> MintError:
    """Return the MintError that an engine's gRPC error carries; a MintError is returned as it is."""
    return error if isinstance(error, MintError) else from_rpc_error(error)


def _refused(request: web.Request, error: MintError) -> web.Response:
    retry_s = error.retry_after_s
    headers = _named(request)
    if retry_s is not None:
        headers["Retry-After"] = str(math.ceil(retry_s))
    if error.terminal and error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        headers["x-should-retry"] = "false"  # OpenAI's clients retry 5xx unless told not to
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    response = reply(openai_response.refusal(error), status=error.http_status, headers=headers)
    if isinstance(error, Unauthenticated):
        response.force_close()  # see `auth_middleware`
    return response


def _named(request: web.Request) -> dict[str, str]:
    """Return the header with the request's ID, once that is known."""
    return {REQUEST_ID: request[NAMED]} if NAMED in request else {}


def reply(
    body: openai_response.Json | msgspec.Raw, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """Return a JSON response; a `Raw` body is JSON that was encoded before."""
    return web.Response(
        body=msgspec.json.encode(body), status=status, headers=headers, content_type="application/json"
    )
