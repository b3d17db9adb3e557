"""The hub's files, requested as from any web server: with a limit on the complete request, and on fsspec's loop.

On its own, huggingface_hub limits only the silence before each byte, waits for sockets on threads that cannot be
interrupted, and retries by itself after however long the hub tells it to sleep.
"""

from typing import Any

import httpx2
from fsspec.asyn import sync
from huggingface_hub import HfFileSystem, set_client_factory
from yarl import URL

from mint_contracts.time_limits import allowed_s, asked_for
from mint_contracts.web_files import WebFiles


def hub_files(web: WebFiles, endpoint: str | None = None, **options: Any) -> HfFileSystem:
    """Return the hub's filesystem. From then on all requests of huggingface_hub in this process go through `web`."""
    transport = _Web(web)
    set_client_factory(lambda: httpx2.Client(transport=transport, follow_redirects=True))
    return HfFileSystem(endpoint=endpoint, **options)


class _Web(httpx2.BaseTransport):
    """Waits for complete responses. Raises what `web` does, and HTTPStatusError if a response asks to retry later."""

    def __init__(self, web: WebFiles) -> None:
        self._web = web

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        moved = asked_for(request.headers.get("range", ""))
        answer: httpx2.Response = sync(self._web.loop, self._answer, request, timeout=allowed_s(moved))
        if answer.status_code == httpx2.codes.TOO_MANY_REQUESTS or "retry-after" in answer.headers:
            raise httpx2.HTTPStatusError("asks for patience", request=request, response=answer)
        return answer

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        session = await self._web.set_session()
        async with session.request(
            request.method,
            URL(str(request.url), encoded=True),  # a signed URL must stay unchanged
            headers=request.headers.multi_items(),
            data=request.read(),
            allow_redirects=False,
            auto_decompress=False,
        ) as answer:
            return httpx2.Response(answer.status, headers=[*answer.headers.items()], content=await answer.read())
