"""Limiting the HTTP door's connections, including those that are only told to come back later."""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog
from aiohttp import web

from mint_gateway.http.receiver import Receiver

HELLO_S = 10.0  # for a client to complete the TLS handshake
FIRST_S = 20.0  # for it to send a complete request's head, if its place is needed
PARTING_S = 2.0  # for a client to end TLS, too, once its connection is closed
PAUSE_S = 0.2  # when accepting fails, for example for lack of file descriptors

_Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_log = structlog.get_logger()


@dataclass(frozen=True)
class Limit:
    """A server's limit of connections, and how long one may carry nothing after a request."""

    most: int
    idle_s: float


@dataclass(frozen=True)
class _Silent:
    """A connection that has not carried a request yet."""

    host: str
    since: float


class Connections:
    """Gives each connection to the first server that has a place for it, and closes it if there is none.

    Connections still in their TLS handshake count too. Of those that have not carried a request yet, an address has
    at most as many as it leaves places, and they give way to others after FIRST_S: silent ones do not shut the door.
    """

    def __init__(self, limits: Mapping[web.Server, Limit], context: ssl.SSLContext | None) -> None:
        self._limits = limits
        self._arriving: dict[web.Server, set[web.RequestHandler]] = {server: set() for server in limits}
        self._silent: dict[web.RequestHandler, _Silent] = {}
        self._context = context
        for server in limits:
            server.request_handler = self._noting(server.request_handler)

    async def accept(self, listening: socket.socket) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        async with asyncio.TaskGroup() as arrivals:
            while True:
                try:
                    arrived, (host, *_) = await loop.sock_accept(listening)
                except OSError as error:
                    _log.warning("HTTP door cannot accept connections", error=str(error))
                    await asyncio.sleep(PAUSE_S)
                    continue
                server = self._place(host)
                if server is None:
                    arrived.close()
                else:
                    handler = Receiver(server, self._limits[server].idle_s)
                    self._arriving[server].add(handler)
                    self._silent[handler] = _Silent(host, time.monotonic())
                    arrivals.create_task(self._receive(arrived, server, handler))
                await asyncio.sleep(0)  # sock_accept does not yield while more are pending

    def _place(self, host: str) -> web.Server | None:
        """Return the first server that has a place for a connection from this address, or None."""
        present = {server: self._arriving[server].union(server.connections) for server in self._limits}
        everyone = set().union(*present.values())
        self._silent = {each: one for each, one in self._silent.items() if each in everyone}
        for server, there in present.items():
            silent = [(each, self._silent[each]) for each in there if each in self._silent]
            if len(there) + sum(one.host == host for _, one in silent) < self._limits[server].most:
                return server
            for each, one in silent:
                if time.monotonic() - one.since > FIRST_S:
                    each.force_close()
        return None

    def _noting(self, handle: _Handle) -> _Handle:
        async def noted(request: web.BaseRequest) -> web.StreamResponse:
            self._silent.pop(request.protocol, None)
            assert isinstance(request.protocol, Receiver)  # noqa: S101 - made by `accept`
            with request.protocol.answering(request):
                return await handle(request)

        return noted

    async def _receive(self, arrived: socket.socket, server: web.Server, handler: web.RequestHandler) -> None:
        loop, context = asyncio.get_running_loop(), self._context
        hello_s, parting_s = (HELLO_S, PARTING_S) if context else (None, None)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: handler,
                arrived,
                ssl=context,
                ssl_handshake_timeout=hello_s,
                ssl_shutdown_timeout=parting_s,
            )
            # Sent data counts as taken once the kernel has all of it. By TLS it has all but 64 KiB, and limits of 0
            # would have asyncio wait with nothing left to send (`SSLProtocol._control_app_writing` compares by >=).
            transport.set_write_buffer_limits(1 if context else 0)
        except OSError:
            pass  # the client went away, or does not speak TLS
        except Exception:  # noqa: BLE001 - one client's failure must not close the door
            _log.exception("HTTP connection failed")
        finally:
            self._arriving[server].discard(handler)
