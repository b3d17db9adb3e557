"""Limiting the HTTP door's connections, including those that are only told to come back later."""

import asyncio
import socket
import ssl
from collections.abc import Mapping

import structlog
from aiohttp import web

HELLO_S = 10.0  # for a client to complete the TLS handshake
PAUSE_S = 0.2  # when accepting fails, for example for lack of file descriptors

_log = structlog.get_logger()


class Connections:
    """Gives each connection to the first server below its limit, and closes it if there is none.

    Connections still in their TLS handshake count too.
    """

    def __init__(self, limits: Mapping[web.Server, int], context: ssl.SSLContext | None) -> None:
        self._limits = limits
        self._arriving: dict[web.Server, set[web.RequestHandler]] = {server: set() for server in limits}
        self._context = context

    async def accept(self, listening: socket.socket) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        async with asyncio.TaskGroup() as arrivals:
            while True:
                try:
                    arrived, _ = await loop.sock_accept(listening)
                except OSError as error:
                    _log.warning("HTTP door cannot accept connections", error=str(error))
                    await asyncio.sleep(PAUSE_S)
                    continue
                server = next((each for each, most in self._limits.items() if self._taken(each) < most), None)
                if server is None:
                    arrived.close()
                else:
                    handler = server()
                    self._arriving[server].add(handler)
                    arrivals.create_task(self._receive(arrived, server, handler))
                await asyncio.sleep(0)  # sock_accept does not yield while more are pending

    def _taken(self, server: web.Server) -> int:
        return len(self._arriving[server].union(server.connections))

    async def _receive(self, arrived: socket.socket, server: web.Server, handler: web.RequestHandler) -> None:
        loop, hello_s = asyncio.get_running_loop(), HELLO_S if self._context else None
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: handler, arrived, ssl=self._context, ssl_handshake_timeout=hello_s
            )
            transport.set_write_buffer_limits(0)  # sent data counts as taken once the kernel has all of it
        except OSError:
            pass  # the client went away, or does not speak TLS
        except Exception:  # noqa: BLE001 - one client's failure must not close the door
            _log.exception("HTTP connection failed")
        finally:
            self._arriving[server].discard(handler)
