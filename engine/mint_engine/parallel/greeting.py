"""How the nodes of one engine know each other when one connects: both prove, by a key, that they are its own.

What proves it (an HMAC of the other's challenge) tells nobody the key, and is good for one connection only. Neither
this nor what follows is encrypted: pods of one engine talk over the cluster's own network, as its gRPC clients do.

    leader -> other   challenge [32]
    other -> leader   `Hello`, challenge [32], proof [32]
    leader -> other   proof [32]
"""

import hashlib
import hmac
import secrets
import socket
import struct
import time
from dataclasses import dataclass
from enum import IntEnum

GREETING_S = 10.0  # from the connection to its end
_NONCE = 32
_HELLO = struct.Struct("<IB")
# An end that has gone without a word is missed by probes, and one that takes nothing is given a rank's patience.
_QUIET_S, _PROBE_S, _STUCK_MS = 10, 5, 60_000


class Channel(IntEnum):
    """What a connection is for."""

    STEPS = 1
    SLOTS = 2


@dataclass(frozen=True)
class Hello:
    """Who connects."""

    node: int
    channel: Channel


@dataclass(frozen=True)
class Entrance:
    """Where an engine's leader lets its other nodes in, and the key that all of them have."""

    port: int
    key: bytes


class Stranger(Exception):
    """Whoever is at the other end can not prove to be of this engine."""


def key_of(secret: str, base_model: str) -> bytes:
    """What the nodes of a base's engines prove themselves by. Of no secret it is one that anybody can work out."""
    return hmac.digest(secret.encode(), f"mint-ranks {base_model}".encode(), hashlib.sha256)


def admit(connection: socket.socket, key: bytes) -> Hello:
    """The leader's side. Raises Stranger, or OSError where the other end is too slow or gone."""
    deadline = time.monotonic() + GREETING_S
    ours = secrets.token_bytes(_NONCE)
    connection.settimeout(GREETING_S)
    connection.sendall(ours)
    greeting = _read(connection, _HELLO.size, deadline)
    theirs, proof = _read(connection, _NONCE, deadline), _read(connection, _NONCE, deadline)
    if not hmac.compare_digest(proof, _proof(key, b"other", ours, theirs, greeting)):
        raise Stranger("does not know the engine's key")
    node, channel = _HELLO.unpack(greeting)
    connection.sendall(_proof(key, b"leader", theirs, ours, greeting))
    prepare(connection)
    return Hello(node, Channel(channel))


def introduce(connection: socket.socket, key: bytes, hello: Hello) -> None:
    """The other node's side. Raises as `admit` does."""
    deadline = time.monotonic() + GREETING_S
    connection.settimeout(GREETING_S)
    theirs, ours = _read(connection, _NONCE, deadline), secrets.token_bytes(_NONCE)
    greeting = _HELLO.pack(hello.node, hello.channel)
    connection.sendall(greeting + ours + _proof(key, b"other", theirs, ours, greeting))
    if not hmac.compare_digest(_read(connection, _NONCE, deadline), _proof(key, b"leader", ours, theirs, greeting)):
        raise Stranger("does not know the engine's key")
    prepare(connection)


def prepare(connection: socket.socket) -> None:
    """Have it send at once, and notice when the other end is gone."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _QUIET_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STUCK_MS)


def _proof(key: bytes, role: bytes, asked: bytes, own: bytes, greeting: bytes) -> bytes:
    return hmac.digest(key, role + asked + own + greeting, hashlib.sha256)


def _read(connection: socket.socket, count: int, deadline: float) -> bytes:
    """So many bytes until then, however few of them come at once."""
    found = bytearray()
    while len(found) < count:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        piece = connection.recv(count - len(found))
        if not piece:
            raise Stranger("hung up")
        found += piece
    return bytes(found)
