"""S3's HTTP session with a time limit on each complete request, and on how fast the server takes its body.

On its own, the session limits only the silence before each byte of a response, and nothing of an upload: it would
wait forever for a server that accepts a connection but never sends 100-continue or never reads the body.
"""

from typing import Any

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession

from mint_contracts.time_limits import allowed_s, asked_for
from mint_contracts.uploads import Tracked, bounded

WHOLE_BYTES = 64 << 20  # the most of an object requested without a range: s3fs reads larger ones in parts
_SENT = ("X-Amz-Decoded-Content-Length", "Content-Length")


class S3Session(AIOHTTPSession):  # type: ignore[misc]
    """AIOHTTPSession with these limits. Raises TimeoutError."""

    async def send(self, request: Any) -> Any:
        """Send a request and return once the response's head is there, and its body too unless it is an object."""
        async with bounded(*_moved(request)):
            return await super().send(request)

    async def _get_session(self, proxy_url: str | None) -> Tracked:
        return Tracked(await super()._get_session(proxy_url))

    def _get_request_timeout(self, request: Any) -> aiohttp.ClientTimeout:
        total, silence = allowed_s(sum(_moved(request))), self._timeout
        return aiohttp.ClientTimeout(total=total, sock_connect=silence.sock_connect, sock_read=silence.sock_read)


def _moved(request: Any) -> tuple[int, int]:
    """Return the bytes that a request sends, and those that it asks for."""
    headers = {name.lower(): _text(value) for name, value in request.headers.items()}
    sent = max(int(headers.get(name.lower()) or 0) for name in _SENT)
    return sent, (asked_for(headers.get("range", "")) or WHOLE_BYTES) if request.stream_output else 0


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
