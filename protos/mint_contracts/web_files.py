"""Files of web servers, which anybody may run: each response's head, block and stream has a time limit.

A block other than the requested one is an error: nothing else might reveal the mix-up. So is a larger one, of which
the rest is not read. Link-local addresses are never connected to: there clouds have metadata services, which give
credentials to whoever asks from a machine of theirs.
"""

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address
from typing import Any

import aiohttp
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFile, HTTPFileSystem

from mint_contracts.errors import SourceForbidden
from mint_contracts.time_limits import allowed_s, asked_for

_METADATA = IPv6Address("fd00:ec2::254")  # AWS's, which is not link-local
_ASKED, _SENT = re.compile(r"bytes=(\d{1,18})-(\d{1,18})"), re.compile(r"bytes (\d{1,18})-(\d{1,18})/")


class WebFiles(HTTPFileSystem):  # type: ignore[misc]
    """HTTPFileSystem with these limits. Raises TimeoutError or FSTimeoutError."""

    def __init__(self, *, timeout: aiohttp.ClientTimeout, **options: Any) -> None:
        client = {"timeout": timeout, "trust_env": True, "middlewares": (_answered,)}
        super().__init__(client_kwargs=client, get_client=_client, **options)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        if isinstance(file, HTTPFile):
            file.cache.fetcher = partial(_block, file)
        else:
            file.read = _paced(file.read, path.rsplit("/", 1)[-1])
        return file


async def _client(**options: Any) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(socket_factory=_socket)
    return aiohttp.ClientSession(connector=connector, response_class=_Answer, **options)


class _Answer(aiohttp.ClientResponse):
    """A response that takes no more memory than the part of a file that was asked for, whatever it unpacks to."""

    async def read(self) -> bytes:
        most = asked_for(self.request_info.headers.get("Range", ""))
        if not most:
            return await super().read()
        body = bytearray()
        while len(body) <= most and (piece := await self.content.read(most + 1 - len(body))):
            body += piece
        if len(body) > most:
            self.close()
            raise aiohttp.ClientPayloadError(f"asked for {most} bytes and was sent more")
        return bytes(body)


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """Make the socket of a connection, to wherever a name or a redirect leads. Raises SourceForbidden."""
    family, kind, protocol, _, (host, *_) = address
    to = ip_address(host)
    to = getattr(to, "ipv4_mapped", None) or to
    if to.is_link_local or to == _METADATA:
        reason = "is a link-local address, as of a cloud's metadata service, to which no source may lead"
        raise SourceForbidden(f"address {host}", reason)
    return socket.socket(family=family, type=kind, proto=protocol)


async def _answered(
    request: aiohttp.ClientRequest, send: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]
) -> aiohttp.ClientResponse:
    async with asyncio.timeout(allowed_s(0)):
        answer = await send(request)
    asked, header = _ASKED.fullmatch(request.headers.get("Range", "")), answer.headers.get("Content-Range", "")
    if answer.status == HTTPStatus.PARTIAL_CONTENT and asked and not _is_part(header, int(asked[1]), int(asked[2])):
        answer.close()
        raise aiohttp.ClientPayloadError(f"asked for {asked[0]} and was sent {header[:100]!r}")
    return answer


def _is_part(header: str, first: int, last: int) -> bool:
    """Whether a Content-Range header is the requested range, or the beginning of it at the file's end."""
    sent = _SENT.match(header)
    return sent is not None and int(sent[1]) == first and int(sent[2]) <= last


def _block(file: HTTPFile, start: int, end: int) -> bytes:
    """Read one complete block within a time limit: the timeout for each read restarts with every few bytes."""
    part: bytes = sync(file.loop, file.async_fetch_range, start, end, timeout=allowed_s(end - start))
    if len(part) != end - start:
        raise aiohttp.ClientPayloadError(f"asked for {end - start} bytes from {start} and was sent {len(part)}")
    return part


def _paced(read: Callable[[int], bytes], name: str) -> Callable[[int], bytes]:
    """Wrap `read` so that it raises TimeoutError if all reads so far took longer than their bytes are allowed to."""
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
