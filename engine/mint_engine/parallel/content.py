"""Sending a packed adapter's file to another node, where no descriptor can be passed: length, bytes, digest."""

import os
import socket
import struct

from blake3 import blake3

from mint_contracts.errors import CorruptFile, EngineUnavailable, SourceUnavailable
from mint_engine.parallel.messages import exactly

_LENGTH = struct.Struct("<Q")
_PIECE = 1 << 20


def send_content(to: socket.socket, descriptor: int) -> None:
    """Send a complete file, whatever its descriptor's offset. Raises OSError, or EngineUnavailable if it shrinks."""
    length, digest, sent = os.fstat(descriptor).st_size, blake3(), 0
    to.sendall(_LENGTH.pack(length))
    while sent < length:
        piece = os.pread(descriptor, min(_PIECE, length - sent), sent)
        if not piece:
            raise EngineUnavailable("engine", "received an incomplete adapter file from the leader; retry")
        digest.update(piece)
        to.sendall(piece)
        sent += len(piece)
    to.sendall(digest.digest())


def receive_content(source: socket.socket, into: int | None, subject: str) -> None:
    """Write the received content into an empty file, or discard it; in any case read all of it.

    Raises CorruptFile, or SourceUnavailable if it could not be written, or what `messages.receive` raises.
    """
    (left,), digest = _LENGTH.unpack(exactly(source, _LENGTH.size)), blake3()
    trouble: OSError | None = None
    while left:
        piece = exactly(source, min(_PIECE, left))
        digest.update(piece)
        left -= len(piece)
        if into is not None and trouble is None:
            try:
                _write(into, piece)
            except OSError as error:
                trouble = error
    if exactly(source, digest.digest_size) != digest.digest():
        raise CorruptFile(subject, "arrived on another node with different content than was sent")
    if trouble is not None:
        raise not_kept(subject, trouble) from trouble


def not_kept(subject: str, trouble: OSError) -> SourceUnavailable:
    """Return the error for an adapter that another node could not keep, for lack of room, say."""
    return SourceUnavailable(subject, f"cannot be kept on another node ({trouble}); retrying")


def _write(into: int, piece: bytes) -> None:
    left = memoryview(piece)
    while left:
        left = left[os.write(into, left) :]
