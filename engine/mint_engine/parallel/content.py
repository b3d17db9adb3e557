"""A packed adapter's file on its way to another node, to which no descriptor of it can be passed.

That is its length, its bytes and their digest.
"""

import os
import socket
import struct

from blake3 import blake3

from mint_contracts.errors import CorruptFile, EngineUnavailable
from mint_engine.parallel.messages import exactly

_LENGTH = struct.Struct("<Q")
_PIECE = 1 << 20


def send_content(to: socket.socket, descriptor: int) -> None:
    """Send a whole file, wherever its descriptor stands. Raises OSError, or EngineUnavailable where it shrinks."""
    length, digest, sent = os.fstat(descriptor).st_size, blake3(), 0
    to.sendall(_LENGTH.pack(length))
    while sent < length:
        piece = os.pread(descriptor, min(_PIECE, length - sent), sent)
        if not piece:
            raise EngineUnavailable("engine", "has an adapter's file that was cut short while it was sent; ask again")
        digest.update(piece)
        to.sendall(piece)
        sent += len(piece)
    to.sendall(digest.digest())


def receive_content(source: socket.socket, into: int, subject: str) -> None:
    """Write what is sent into an empty file. Raises CorruptFile after all of it, or as `messages.receive` does."""
    (left,), digest = _LENGTH.unpack(exactly(source, _LENGTH.size)), blake3()
    with os.fdopen(into, "wb", closefd=False) as file:
        while left:
            piece = exactly(source, min(_PIECE, left))
            digest.update(piece)
            file.write(piece)
            left -= len(piece)
    if exactly(source, digest.digest_size) != digest.digest():
        raise CorruptFile(subject, "came to another node with other content than it was sent with")
