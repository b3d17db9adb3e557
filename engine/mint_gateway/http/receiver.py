"""Receiving the HTTP requests of one connection, of which little is held before they are answered.

aiohttp takes 128 header fields of 8 KiB each, before any key is checked, and 32 such requests beside the one that is
being answered.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from aiohttp.streams import StreamReader

MOST_AHEAD = 16 << 10  # bytes of a request's head, and of what comes while the request before it is being answered
PIECE = 4 << 10  # bytes parsed at a time, by which a head may be longer
_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Receiver(web.RequestHandler):
    """One connection. It is closed for a head that is too long and, after an answer, if too much came meanwhile."""

    __slots__ = ("_answers", "_body", "_head", "_later")

    def __init__(self, server: web.Server, idle_s: float) -> None:
        """`idle_s` is how long it may carry nothing after a request."""
        no_log: Any = None  # which aiohttp's types do not know
        super().__init__(server, loop=asyncio.get_running_loop(), keepalive_timeout=idle_s, access_log=no_log)
        self._answers = False  # whether a request is being answered
        self._body: StreamReader | None = None  # that request's, else the next one's
        self._head = 0  # bytes of a head that is not complete yet
        self._later = b""  # not parsed yet

    def data_received(self, data: bytes) -> None:
        """Parse what belongs to the request that is being answered, or comes next. aiohttp goes on with b""."""
        if self._close or self._force_close:
            return
        if not data:
            super().data_received(data)
        self._later += data
        at = 0
        while at < len(self._later) and not self._reading_paused and not self._must_wait():
            piece = self._later[at : at + PIECE]
            at += len(piece)
            super().data_received(piece)
            if self._messages and not self._answers:
                self._body = self._messages[0][1]
            self._head = 0 if self._messages or self._is_arriving() else self._head + len(piece)
            if self._head > MOST_AHEAD and self.transport is not None:
                self.transport.write(_TOO_LONG)
                self.force_close()
        self._later = self._later[at:]
        if len(self._later) > MOST_AHEAD and self._must_wait():
            self._later = b""
            self.close()  # by RFC 9112, 9.3.2, clients send again what was not answered

    @contextmanager
    def answering(self, request: web.BaseRequest) -> Iterator[None]:
        """Parse nothing that comes after this request until the block ends."""
        self._answers, self._body, self._head = True, request.content, 0
        try:
            self._go_on()  # with its body, which may have come behind an earlier request
            yield
        finally:
            self._answers = False
            self._go_on()

    def _go_on(self) -> None:
        if self._later and self.transport is not None:
            self.data_received(b"")

    def _is_arriving(self) -> bool:
        return self._body is not None and not self._body.is_eof()

    def _must_wait(self) -> bool:
        return (self._answers or bool(self._messages)) and not self._is_arriving()
