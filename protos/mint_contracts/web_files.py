"""Files of web servers, which anybody may run: each answer's beginning, block and stream is bounded as a whole."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFile, HTTPFileSystem

from mint_contracts.paces import allowed_s


class WebFiles(HTTPFileSystem):  # type: ignore[misc]
    """As its parent, but for the bounds. Raises TimeoutError or FSTimeoutError."""

    def __init__(self, *, timeout: aiohttp.ClientTimeout, **options: Any) -> None:
        client = {"timeout": timeout, "trust_env": True, "middlewares": (_answered,)}
        super().__init__(client_kwargs=client, **options)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        if isinstance(file, HTTPFile):
            file.cache.fetcher = lambda start, end: sync(
                file.loop, file.async_fetch_range, start, end, timeout=allowed_s(end - start)
            )
        else:
            file.read = _paced(file.read, path.rsplit("/", 1)[-1])
        return file


async def _answered(
    request: aiohttp.ClientRequest, send: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]
) -> aiohttp.ClientResponse:
    async with asyncio.timeout(allowed_s(0)):
        return await send(request)


def _paced(read: Callable[[int], bytes], name: str) -> Callable[[int], bytes]:
    """What comes at one go may take as long as it needs, but not longer than what has come so far is allowed."""
    waited, came = 0.0, 0

    def paced(count: int = -1) -> bytes:
        nonlocal waited, came
        began = time.monotonic()
        part = read(count)
        waited += time.monotonic() - began
        came += len(part)
        if waited > allowed_s(came):
            raise TimeoutError(f"{came} bytes of {name} took {waited:.0f} s")
        return part

    return paced
