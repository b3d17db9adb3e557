"""S3's HTTP session, each of whose requests is bounded as a whole, and by how its body is taken.

By itself it bounds the silence before each byte of an answer, and nothing of an upload: a server that takes a
connection and never says that the body may come (100-continue), or reads none of it, is waited for without an end.
"""

from typing import Any

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession

from mint_contracts.paces import allowed_s, asked_for
from mint_contracts.uploads import Tracked, bounded

WHOLE_BYTES = 64 << 20  # of an object that is asked for whole: s3fs takes larger ones in parts
_SENT = ("X-Amz-Decoded-Content-Length", "Content-Length")


class S3Session(AIOHTTPSession):  # type: ignore[misc]
    """As its parent, but for the bounds. Raises TimeoutError."""

    async def send(self, request: Any) -> Any:
        """Until its answer's head is there, and all of an answer that is no object."""
        async with bounded(*_moved(request)):
            return await super().send(request)

    async def _get_session(self, proxy_url: str | None) -> Tracked:
        return Tracked(await super()._get_session(proxy_url))

    def _get_request_timeout(self, request: Any) -> aiohttp.ClientTimeout:
        total, silence = allowed_s(sum(_moved(request))), self._timeout
        return aiohttp.ClientTimeout(total=total, sock_connect=silence.sock_connect, sock_read=silence.sock_read)


def _moved(request: Any) -> tuple[int, int]:
    """Bytes that are sent, and those that are asked for."""
    headers = {name.lower(): _text(value) for name, value in request.headers.items()}
    sent = max(int(headers.get(name.lower()) or 0) for name in _SENT)
    return sent, (asked_for(headers.get("range", "")) or WHOLE_BYTES) if request.stream_output else 0


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
