"""The messages from rank 0 to the other ranks: steps over one connection, slot changes over another.

Ranks of its own node inherit sockets. Another node has two TCP connections for all of its ranks, and its `worker`
passes messages on. Both ends are of one engine and the same code, checked by the `edition` that a node receives
first, so the format is just msgpack of structs without field names.
"""

import socket
import struct
from collections.abc import Sequence

import msgspec

from mint_contracts.errors import UnsupportedBase
from mint_contracts.settings import EngineSettings

_LENGTH = struct.Struct("<I")


class Begin(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Load your share of the base; answered by `Ready` or `Refused`."""

    settings: EngineSettings
    base: str  # its folder or file
    digest: str  # of the base, see `base_digest`; "" if all ranks are on one node
    rank: int  # in a message to a node: its first rank
    count: int
    rows: int  # the most of a step
    threads: int  # of each rank
    processor: str = ""  # what rank 0 computes on, see `processor_of`; "" if all ranks are on one node


class Wire(msgspec.Struct, frozen=True, array_like=True):
    """Where ranks of several nodes find each other."""

    host: str  # the leader, as the rank's own node reaches it
    port: int
    name: str  # the unique, secret name of this rendezvous
    address: str  # of the rank's own node, for the others


class Meet(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The shared memory has its size: choose the pass, and wait for steps. Answered as `Begin` is."""

    lean: bool
    wire: Wire | None  # None: all ranks are on one node


class Passes(msgspec.Struct, frozen=True, array_like=True):
    """The passes that a rank computes with."""

    rank: int
    serving: str
    training: str  # "" if nothing is trained
    room: int | None = None  # bytes that its GPU has left for updates; None on a CPU


class Ready(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Success. The answer to `Meet` has the passes of each rank."""

    passes: tuple[Passes, ...] = ()


class Refused(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Failure."""

    problem: str
    reason: str = UnsupportedBase.__name__  # the error's class


class Step(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Compute a step with the arguments of `Forward.run`. Not answered: ranks meet while they compute."""

    tokens: Sequence[int]
    spans: Sequence[tuple[int, int, int, Sequence[int], int, Sequence[Sequence[int]]]]  # the fields of `Span`
    keep: Sequence[int]


class Wipe(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Zero pages of the cache, before the next step. Not answered."""

    pages: Sequence[int]


class Hold(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Updates begin: hold these policies' weights, which follow through sums. Like all of an update, not answered."""

    policies: Sequence[tuple[int, Sequence[tuple[str, int, float]]]]  # its number; each module's path, rank, scaling


class Compute(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Begin a batch over held policies, see `training.batch.Batch`; arrays are bytes of int64."""

    tokens: bytes
    positions: bytes
    trees: Sequence[tuple[int, int, Sequence[int]]]
    segments: Sequence[tuple[int, int, int]]  # start, stop, policy
    routes: bytes
    routes_shape: Sequence[int]  # empty: none
    wanted: Sequence[tuple[int, int, bytes, bytes, float, bool]]  # the fields of `Wanted`
    learn: bool  # run the backward pass, too


class Advance(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Compute the batch's next piece."""


class Give(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Return all of a policy's gradients through sums, and release it."""

    policy: int


class Abandon(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The turn is over, complete or not, between two of its pieces: release these policies."""

    policies: Sequence[int]


class End(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Sent only to nodes: no step follows, as the leader starts over or is done. Connect again once it listens."""


class Load(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Put a packed adapter into a slot; its file's descriptor, or content (see `content`), comes with the message."""

    slot: int
    subject: str
    after: int  # steps since `Meet` that must be launched first, see `parallel`


class Clear(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Clear a slot."""

    slot: int
    after: int  # as for `Load`


Lesson = Hold | Compute | Advance | Give | Abandon
Command = Begin | Meet | Step | Wipe | Lesson | End
Answer = Ready | Refused
SlotChange = Load | Clear

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
decode_change = msgspec.msgpack.Decoder(SlotChange).decode


def send(to: socket.socket, message: Command | Answer | SlotChange) -> None:
    """Send one message over a stream. Raises OSError if the other end is gone or does not read in time."""
    pass_on(to, encode(message))


def pass_on(to: socket.socket, message: bytes) -> None:
    """Send one message that is already encoded. Raises as `send` does."""
    to.sendall(_LENGTH.pack(len(message)) + message)


def receive(source: socket.socket) -> bytes:
    """Receive the next message, still encoded. Raises EOFError if the other end is gone, OSError as sockets do."""
    (length,) = _LENGTH.unpack(exactly(source, _LENGTH.size))
    return exactly(source, length)


def exactly(source: socket.socket, count: int) -> bytes:
    """Receive exactly `count` bytes. Raises as `receive` does."""
    found = bytearray()
    while len(found) < count:
        piece = source.recv(count - len(found))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)
