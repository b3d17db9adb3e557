"""A TCP relay in front of a real server, which injects the faults of networks and broken servers."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TRICKLE_S = 0.05
SLOW_S = 0.005
TAKEN = 1 << 16
_OF_ANSWERS = ("silent", "trickle", "cut")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class Relay:
    """A relay that listens on `port` and connects to `server`.

    Some values of `fault` affect each answer after its first `freely` bytes:

    "silent": nothing more arrives; if `freely` is 0, requests are not read either
    "trickle": a byte arrives now and then
    "cut": the connection is reset

    The others affect each request:

    "stuck": nothing is read after its first `freely` bytes
    "slow": it is read steadily, at most TAKEN bytes in SLOW_S
    """

    def __init__(self, host: str, port: int) -> None:
        self.fault, self.freely = "", 0
        self.server = host, port
        self._over = threading.Event()
        self._lock, self._open = threading.Lock(), list[socket.socket]()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def taken(self) -> int:
        """The number of open connections, on both sides."""
        return len(self._open)

    def close(self) -> None:
        """Close every connection, so that clients that still wait for an answer notice."""
        self._over.set()
        with self._lock:
            for each in (self._door, *self._open):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def heal(self) -> None:
        """Relay without faults from now on; connections affected by a fault are closed."""
        self.fault = ""
        with self._lock:
            left, self._open = self._open, []
        for each in left:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._door.accept()
                with self._lock:
                    self._open.append(here)
                if self.fault == "silent" and not self.freely:
                    continue
                there = socket.create_connection(self.server)
                with self._lock:
                    self._open.append(there)
                threading.Thread(target=self._asked, args=(here, there), daemon=True).start()
                threading.Thread(target=self._answered, args=(there, here), daemon=True).start()

    def _asked(self, here: socket.socket, there: socket.socket) -> None:
        with suppress(OSError):
            taken = 0
            while part := here.recv(TAKEN):
                there.sendall(part)
                taken += len(part)
                if self.fault == "slow":
                    self._over.wait(SLOW_S)
                elif self.fault == "stuck" and taken >= self.freely:
                    self._over.wait()
            there.shutdown(socket.SHUT_WR)

    def _answered(self, there: socket.socket, here: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while part := there.recv(TAKEN):
                free = part[: max(0, self.freely - passed)] if self.fault in _OF_ANSWERS else part
                here.sendall(free)
                passed += len(free)
                self._harm(here, part[len(free) :])
            here.shutdown(socket.SHUT_WR)

    def _harm(self, here: socket.socket, rest: bytes) -> None:
        if rest and self.fault == "cut":
            here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            here.shutdown(socket.SHUT_RD)  # otherwise the thread that reads requests keeps it open
            here.close()
        elif rest and self.fault == "silent":
            self._over.wait()
        for byte in rest if self.fault == "trickle" else b"":
            here.sendall(bytes((byte,)))
            if self._over.wait(TRICKLE_S):
                return


@contextmanager
def relaying(address: str) -> Iterator[Relay]:
    """Yield a relay in front of the server at host:port."""
    host, _, port = address.rpartition(":")
    relay = Relay(host, int(port))
    try:
        yield relay
    finally:
        relay.close()
