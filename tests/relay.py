"""A TCP relay before a real server, which does to what passes what networks and broken servers do."""

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
    """`port` is its own, and `server` what new connections lead to.

    `fault` is what befalls each answer behind its first `freely` bytes:

    "silent": nothing comes any more; where `freely` is 0 nothing of what is asked is taken either
    "trickle": a byte comes now and then
    "cut": the connection is reset

    Or it befalls what is asked:

    "stuck": nothing is taken behind its first `freely` bytes
    "slow": it is taken steadily, TAKEN bytes in SLOW_S and more
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
        """Connections that are there, on either side."""
        return len(self._open)

    def close(self) -> None:
        """Whoever still waits for an answer is told."""
        self._over.set()
        with self._lock:
            for each in (self._door, *self._open):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def heal(self) -> None:
        """From now on it only relays; connections that a fault has befallen are gone."""
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
            here.shutdown(socket.SHUT_RD)  # whoever waits for what is asked keeps it open otherwise
            here.close()
        elif rest and self.fault == "silent":
            self._over.wait()
        for byte in rest if self.fault == "trickle" else b"":
            here.sendall(bytes((byte,)))
            if self._over.wait(TRICKLE_S):
                return


@contextmanager
def relaying(address: str) -> Iterator[Relay]:
    """A relay before the server at host:port."""
    host, _, port = address.rpartition(":")
    relay = Relay(host, int(port))
    try:
        yield relay
    finally:
        relay.close()
