"""The hub's files, whose requests are a web server's like any other: bounded as a whole, and made on fsspec's loop.

By itself its library bounds the silence before each byte, on threads that wait for sockets and can not be told to
give up, and asks again on its own, after as long as the hub tells it to sleep.
"""

from typing import Any

import httpx2
from fsspec.asyn import sync
from huggingface_hub import HfFileSystem, set_client_factory
from yarl import URL

from mint_contracts.paces import allowed_s, asked_for
from mint_contracts.web_files import WebFiles


def hub_files(web: WebFiles, endpoint: str | None = None, **options: Any) -> HfFileSystem:
    """The hub's filesystem; `web` is from then on asked by all that huggingface_hub does in this process."""
    transport = _Web(web)
    set_client_factory(lambda: httpx2.Client(transport=transport, follow_redirects=True))
    return HfFileSystem(endpoint=endpoint, **options)


class _Web(httpx2.BaseTransport):
    """Waits for whole answers. Raises what `web` does, and HTTPStatusError of an answer that asks for patience."""

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
            URL(str(request.url), encoded=True),  # a signed one is to stay as it is
            headers=request.headers.multi_items(),
            data=request.read(),
            allow_redirects=False,
            auto_decompress=False,
        ) as answer:
            return httpx2.Response(answer.status, headers=[*answer.headers.items()], content=await answer.read())
