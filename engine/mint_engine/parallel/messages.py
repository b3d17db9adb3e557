"""What rank 0 tells the other ranks: steps over one connection, slots over another.

Ranks of its own node inherit sockets. Another node has two TCP connections for all of its ranks (see `worker`), which
passes on what comes. Both ends are of one engine and one version, by the `edition` that a node is sent before all
else, so msgpack of structs, without names, is all the format there is.
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
    digest: str  # of the base, see `base_digest`; "" where all ranks are on one node
    rank: int  # to a node: its first one
    count: int
    rows: int  # of a step at most
    threads: int  # of each rank
    instructions: str = ""  # that the leader's CPU computes by; "" where all ranks are on one node, or on GPUs


class Wire(msgspec.Struct, frozen=True, array_like=True):
    """Where ranks of several nodes find each other."""

    host: str  # the leader, as the rank's own node reaches it
    port: int
    name: str  # of this meeting among all that there ever are; nobody else knows it
    address: str  # of the rank's own node, for the others


class Meet(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The memory is as large as it must be: choose the pass, and wait for steps. Answered as `Begin` is."""

    lean: bool
    wire: Wire | None  # None: all ranks are on one node


class Passes(msgspec.Struct, frozen=True, array_like=True):
    """What a rank computes by."""

    rank: int
    serving: str
    training: str  # "" where nothing is trained


class Ready(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """It went well. What answers `Meet` tells what each rank computes by."""

    passes: tuple[Passes, ...] = ()


class Refused(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """It did not."""

    problem: str
    reason: str = UnsupportedBase.__name__  # the error's class


class Step(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Compute, as `Forward.run` is asked to. Not answered: ranks meet while they compute."""

    tokens: Sequence[int]
    spans: Sequence[tuple[int, int, int, Sequence[int], int, Sequence[Sequence[int]]]]  # the fields of `Span`
    keep: Sequence[int]


class Wipe(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Zero pages of the cache, before the next step. Not answered."""

    pages: Sequence[int]


class Hold(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Updates begin: hold these policies' numbers, which follow by sums. Not answered, as all of an update."""

    policies: Sequence[tuple[int, Sequence[tuple[str, int, float]]]]  # its number; of the modules path, rank, scaling


class Compute(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Begin a batch of what is held, see `training.batch.Batch`; arrays are bytes of int64."""

    tokens: bytes
    positions: bytes
    trees: Sequence[tuple[int, int, Sequence[int]]]
    segments: Sequence[tuple[int, int, int]]  # start, stop, policy
    routes: bytes
    routes_shape: Sequence[int]  # empty: none
    wanted: Sequence[tuple[int, int, bytes, bytes, float]]  # start, stop, rows, targets, temperature
    learn: bool  # the way back too


class Advance(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Compute the batch's next piece."""


class Give(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Give all gradients of a policy's, by sums, and hold it no more."""

    policy: int


class Abandon(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The turn is over, done or not, between two of its pieces: hold nothing of these policies any more."""

    policies: Sequence[int]


class End(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """To a node alone: no step follows, for the leader begins anew or is done. Come again where it listens again."""


class Load(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Put the packed adapter in the file whose descriptor comes along, or content (see `content`), into a slot."""

    slot: int
    subject: str


class Clear(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Leave nothing in a slot."""

    slot: int


Lesson = Hold | Compute | Advance | Give | Abandon
Command = Begin | Meet | Step | Wipe | Lesson | End
Answer = Ready | Refused
SlotChange = Load | Clear

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
decode_change = msgspec.msgpack.Decoder(SlotChange).decode


def send(to: socket.socket, message: Command | Answer | SlotChange) -> None:
    """Send one message over a stream. Raises OSError where the other end is gone or does not read in time."""
    pass_on(to, encode(message))


def pass_on(to: socket.socket, message: bytes) -> None:
    """Send one message that is encoded already; raises as `send` does."""
    to.sendall(_LENGTH.pack(len(message)) + message)


def receive(source: socket.socket) -> bytes:
    """The next message, to be decoded. Raises EOFError where the other end is gone, OSError as sockets do."""
    (length,) = _LENGTH.unpack(exactly(source, _LENGTH.size))
    return exactly(source, length)


def exactly(source: socket.socket, count: int) -> bytes:
    """So many bytes; raises as `receive` does."""
    found = bytearray()
    while len(found) < count:
        piece = source.recv(count - len(found))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)
