"""S3's HTTP session, each of whose requests is bounded as a whole.

By itself it bounds the silence before each byte of an answer, and nothing of an upload: a server that takes a
connection and never says that the body may come (100-continue), or reads none of it, is waited for without an end.
"""

from typing import Any

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession

from mint_contracts.paces import allowed_s, asked_for

UNTOLD_BYTES = 64 << 20  # of an object that is asked for whole: s3fs takes larger ones in parts
_SENT = ("X-Amz-Decoded-Content-Length", "Content-Length")


class S3Session(AIOHTTPSession):  # type: ignore[misc]
    """As its parent, but for the total."""

    def _get_request_timeout(self, request: Any) -> aiohttp.ClientTimeout:
        told = {name.lower(): _text(value) for name, value in request.headers.items()}
        moved = max(int(told.get(name.lower()) or 0) for name in _SENT)
        if request.stream_output:
            moved += asked_for(told.get("range", "")) or UNTOLD_BYTES
        silence = self._timeout
        return aiohttp.ClientTimeout(
            total=allowed_s(moved), sock_connect=silence.sock_connect, sock_read=silence.sock_read
        )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
