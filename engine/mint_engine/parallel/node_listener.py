"""Accepts connections at the leader from the engine's other nodes, and from nobody else."""

import itertools
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

import structlog

from mint_engine.parallel.handshake import AuthenticationFailed, RanksEndpoint, accept
from mint_engine.parallel.node import Node

_AT_ONCE = 256  # simultaneous handshakes: 64 nodes have two connections each, and strangers may connect, too

_PAUSE_S = 0.1

_log = structlog.get_logger(__name__)


class NodeListener:
    """Listens from its construction until it is closed."""

    def __init__(self, endpoint: RanksEndpoint, nodes: Sequence[Node]) -> None:
        """Raises OSError if the port is taken."""
        self._key = endpoint.key
        self._nodes = {node.number: node for node in nodes}
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._listener = socket.create_server(("", endpoint.port), family=family, dualstack_ipv6=both)
        self._handshakes = threading.BoundedSemaphore(_AT_ONCE)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; accepted connections stay open."""
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _listen(self) -> None:
        for number in itertools.count():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed, or the connection was gone before it was accepted, or too many open files
                if self._closed.wait(_PAUSE_S):
                    return
                continue
            if self._handshakes.acquire(blocking=False):
                threading.Thread(target=self._greet, args=(connection, number), daemon=True).start()
            else:
                connection.close()

    def _greet(self, connection: socket.socket, number: int) -> None:
        """Greet one connection, on its own thread: a slow or unknown one does not keep others from connecting."""
        entered, why = False, ""
        try:
            hello = accept(connection, self._key)
            node = self._nodes.get(hello.node)
            entered = node is not None and node.enter(hello.channel, connection, number)
            why = "" if entered else f"node {hello.node} is already connected, or not part of this engine"
        except (AuthenticationFailed, OSError, ValueError) as error:
            why = str(error)
        finally:
            self._handshakes.release()
        if not entered:
            _log.warning("connection_refused", why=why)
            connection.close()
