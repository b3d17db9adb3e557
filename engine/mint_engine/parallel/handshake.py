"""Authentication between the nodes of one engine: when one connects, both prove that they know the engine's key.

The proof (an HMAC of the other's challenge) does not reveal the key, and is valid for one connection only. Neither
this nor what follows is encrypted: pods of one engine use the cluster's own network, as its gRPC clients do.

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

HANDSHAKE_S = 10.0  # time limit of a complete handshake
_NONCE = 32
_HELLO = struct.Struct("<IB")
# Probes detect an end that vanished silently; an end that accepts no data has as long as ranks wait for each other.
_QUIET_S, _PROBE_S, _STUCK_MS = 10, 5, 60_000


class Channel(IntEnum):
    """The purpose of a connection."""

    STEPS = 1
    SLOTS = 2


@dataclass(frozen=True)
class Hello:
    """The connecting node, and the purpose of its connection."""

    node: int
    channel: Channel


@dataclass(frozen=True)
class RanksEndpoint:
    """Where an engine's leader accepts its other nodes, and the key that they share."""

    port: int
    key: bytes


class AuthenticationFailed(Exception):
    """The other end cannot prove that it belongs to this engine."""


def key_of(secret: str, base_model: str) -> bytes:
    """Return the key by which nodes of a base's engines authenticate. Without a secret, anybody can compute it."""
    return hmac.digest(secret.encode(), f"mint-ranks {base_model}".encode(), hashlib.sha256)


def accept(connection: socket.socket, key: bytes) -> Hello:
    """Take part as the leader. Raises AuthenticationFailed, or OSError if the other end is too slow or gone."""
    deadline = time.monotonic() + HANDSHAKE_S
    ours = secrets.token_bytes(_NONCE)
    connection.settimeout(HANDSHAKE_S)
    connection.sendall(ours)
    hello_bytes = _read(connection, _HELLO.size, deadline)
    theirs, proof = _read(connection, _NONCE, deadline), _read(connection, _NONCE, deadline)
    if not hmac.compare_digest(proof, _proof(key, b"other", ours, theirs, hello_bytes)):
        raise AuthenticationFailed("does not know the engine's key")
    node, channel = _HELLO.unpack(hello_bytes)
    connection.sendall(_proof(key, b"leader", theirs, ours, hello_bytes))
    prepare(connection)
    return Hello(node, Channel(channel))


def authenticate(connection: socket.socket, key: bytes, hello: Hello) -> None:
    """Take part as another node. Raises as `accept` does."""
    deadline = time.monotonic() + HANDSHAKE_S
    connection.settimeout(HANDSHAKE_S)
    theirs, ours = _read(connection, _NONCE, deadline), secrets.token_bytes(_NONCE)
    hello_bytes = _HELLO.pack(hello.node, hello.channel)
    connection.sendall(hello_bytes + ours + _proof(key, b"other", theirs, ours, hello_bytes))
    if not hmac.compare_digest(
        _read(connection, _NONCE, deadline), _proof(key, b"leader", ours, theirs, hello_bytes)
    ):
        raise AuthenticationFailed("does not know the engine's key")
    prepare(connection)


def prepare(connection: socket.socket) -> None:
    """Make a connection send without delay, and notice when the other end is gone."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _QUIET_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STUCK_MS)


def _proof(key: bytes, role: bytes, asked: bytes, own: bytes, hello_bytes: bytes) -> bytes:
    return hmac.digest(key, role + asked + own + hello_bytes, hashlib.sha256)


def _read(connection: socket.socket, count: int, deadline: float) -> bytes:
    """Read exactly `count` bytes before the deadline. Raises AuthenticationFailed at the connection's end."""
    found = bytearray()
    while len(found) < count:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        piece = connection.recv(count - len(found))
        if not piece:
            raise AuthenticationFailed("hung up")
        found += piece
    return bytes(found)
