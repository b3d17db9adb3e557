"""The bytes of a packed adapter's file (see `packed`): written in one canonical form, read with bounds of our own.

Nothing that a file claims is used to allocate or map memory before it has been checked: the body against its digest,
every place against the one before it, and their sum against the file's real size.
"""

import hashlib
import os
import struct
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, BinaryIO, Literal

import msgspec
import torch
from msgspec import Meta

from mint_contracts.errors import CorruptFile
from mint_engine.adapters.digests import BLAKE3, UNKNOWN, Digest, digest_of
from mint_engine.adapters.packed import Header, Layout, Packed, Place, bytes_of
from mint_engine.model.device import DTYPES

MAGIC = b"MINTLORA"
VERSION = 2
OLDEST = 1  # differs only in the run's digest; still read, and passed on unchanged
PREFIX = struct.Struct("<8sII32s")
ALIGNMENT = 4096  # of the run's offset: a page
MAX_BODY_BYTES = 4 << 20  # 672 parts of a large model need 60 KiB, and a PEFT config has its own limit of 1 MiB
MAX_HEAD_BYTES = MAX_BODY_BYTES + ALIGNMENT
CACHED_TEXT_BYTES = 256 << 10

_HEX = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_Size = Annotated[int, Meta(ge=1, le=1 << 31)]
_Part = tuple[
    Annotated[str, Meta(min_length=1, max_length=512)],  # path
    Annotated[int, Meta(ge=0, le=1 << 16)],  # experts
    Annotated[int, Meta(ge=1, le=1 << 16)],  # rank
    _Size,  # in
    _Size,  # out
    Annotated[int, Meta(ge=0, le=1 << 48)],  # offset
]


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The header's JSON, in this order, without spaces. `run` is the run's digest, `parts` a list of `_Part`."""

    dtype: Literal["bfloat16", "float16", "float32"]
    base: _HEX
    run: Digest
    config: str
    scalings: list[float]
    parts: msgspec.Raw


# Made once, on import: msgspec 0.22 exposes a struct to other threads while it is still collecting its fields, and
# the first loads that decoded one concurrently crashed the process (a read at address 0 in its decoder).
_BODY, _PARTS = msgspec.json.Decoder(_Body), msgspec.json.Decoder(list[_Part])


def describe(config: bytes, base: str, layout: Layout, scalings: tuple[float, ...], run: torch.Tensor) -> Header:
    """Return the header of a run in host memory; takes one pass over it for its digest."""
    return complete(outline(config, base, layout, scalings, run.dtype), run)


def outline(config: bytes, base: str, layout: Layout, scalings: tuple[float, ...], dtype: torch.dtype) -> Header:
    """Return a header without its digests, which take time; `head_bytes` is already final."""
    unnamed = Header(dtype, base, config, layout, scalings, UNKNOWN, revision="", head_bytes=0)
    return replace(unnamed, head_bytes=_aligned(len(_encode(unnamed))))


def complete(header: Header, run: torch.Tensor) -> Header:
    """Return a header or outline with the digests of `run`, which is in host memory."""
    digested = replace(header, digest=digest_of(bytes_of(run)))
    return replace(digested, revision=f"sha256:{hashlib.sha256(_encode(digested)).hexdigest()}")


def head_of(header: Header) -> bytes:
    """Return the bytes of the file before the run."""
    body = _encode(header)
    prefix = PREFIX.pack(MAGIC, _version_of(header.digest), len(body), hashlib.sha256(body).digest())
    return (prefix + body).ljust(_aligned(len(body)), b"\0")


def write(packed: Packed, file: BinaryIO) -> None:
    """Write a complete packed file."""
    file.write(head_of(packed.header))
    file.write(bytes_of(packed.run))


def write_at_once(packed: Packed, descriptor: int) -> None:
    """Write a complete packed file at the position of `descriptor`, head and run together.

    The page cache then keeps it in large pages, which slots map. If it is written piece by piece, the first 2 MiB are
    in small pages (ext4, Linux 6.18): for an adapter of 5 MB, half of what a step reads.
    """
    write_both(descriptor, memoryview(head_of(packed.header)), bytes_of(packed.run))


def write_both(descriptor: int, first: memoryview, second: memoryview) -> None:
    """Write all of two byte strings, in one call as far as the system accepts."""
    while first or second:
        count = os.writev(descriptor, (first, second))
        first, second = first[count:], second[max(0, count - len(first)) :]


def _body_bytes(start: bytes, subject: str, file_bytes: int | None) -> int:
    """Return how many bytes of body follow a file's first `PREFIX.size`. Raises CorruptFile."""
    if len(start) < PREFIX.size:
        raise CorruptFile(
            subject, f"is truncated: {len(start)} bytes, and a packed adapter begins with {PREFIX.size}"
        )
    magic, version, length, _ = PREFIX.unpack(start[: PREFIX.size])
    if magic != MAGIC:
        raise CorruptFile(subject, "is not a packed adapter: it does not begin with MINTLORA")
    if version not in (VERSION, OLDEST):
        read = f"this engine reads {VERSION} and {OLDEST}"
        raise CorruptFile(subject, f"is a packed adapter of format {version}; {read}; pack it again")
    if length > MAX_BODY_BYTES or (file_bytes is not None and _aligned(length) > file_bytes):
        raise CorruptFile(subject, f"is truncated or corrupt: it claims a header of {length} bytes")
    return int(length)


def rest_bytes(start: bytes, subject: str, file_bytes: int | None = None) -> int:
    """Return the number of bytes between a file's first `PREFIX.size` and its run. Raises CorruptFile."""
    return _aligned(_body_bytes(start, subject, file_bytes)) - PREFIX.size


def verify(header: Header, run: torch.Tensor, subject: str) -> None:
    """Raise CorruptFile unless `run`, which is in host memory, matches the header's digest."""
    check_digest(header, digest_of(bytes_of(run), like=header.digest), subject)


def check_digest(header: Header, digest: str, subject: str) -> None:
    """Raise CorruptFile unless `digest` is the header's."""
    if digest != header.digest:
        raise CorruptFile(subject, "has weights that do not match their digest; upload it again")


def parse(start: bytes, rest: bytes, subject: str, *, file_bytes: int | None) -> Header:
    """Return the header from a file's first `PREFIX.size` bytes and the bytes that follow, at least up to the run.

    `file_bytes` is the file's real size, if known. Raises CorruptFile for any inconsistency.
    """
    length = _body_bytes(start, subject, file_bytes)
    head_bytes = _aligned(length)
    body, padding = rest[:length], rest[length : head_bytes - PREFIX.size]
    if len(body) + len(padding) + PREFIX.size < head_bytes:
        raise CorruptFile(subject, f"is truncated within its header of {head_bytes} bytes; upload it again")
    _, version, _, own = PREFIX.unpack(start)
    digest = hashlib.sha256(body)
    if digest.digest() != own or padding.strip(b"\0"):
        raise CorruptFile(subject, "has a header that does not match its digest; upload it again")
    try:
        fields = _BODY.decode(body)
        layout = (
            _known_layout(bytes(fields.parts)) if len(fields.parts) <= CACHED_TEXT_BYTES else _layout(fields.parts)
        )
    except (msgspec.MsgspecError, RecursionError, UnicodeError, _Defect) as error:
        raise CorruptFile(subject, f"has an invalid header for a packed adapter: {str(error)[:200]}") from None
    if version != _version_of(fields.run):
        raise CorruptFile(subject, f"has a digest of another format than its own, {version}; pack it again")
    if len(fields.scalings) != len(layout.places):
        raise CorruptFile(subject, f"has {len(fields.scalings)} scalings for {len(layout.places)} parts")
    header = Header(
        dtype=DTYPES[fields.dtype],
        base=fields.base,
        config=fields.config.encode(),
        layout=layout,
        scalings=tuple(fields.scalings),
        digest=fields.run,
        revision=f"sha256:{digest.hexdigest()}",
        head_bytes=head_bytes,
    )
    if file_bytes is not None and file_bytes != header.file_bytes:
        problem = "is truncated" if file_bytes < header.file_bytes else "has bytes beyond its run"
        raise CorruptFile(subject, f"{problem}: {file_bytes} bytes, and its header gives {header.file_bytes}")
    return header


def is_canonical(header: Header, start: bytes) -> bool:
    """Return whether a file's first bytes are those that `write` would produce."""
    return head_of(header).startswith(start)


class _Defect(Exception):
    """A layout is invalid."""


def _layout(text: bytes | msgspec.Raw) -> Layout:
    places, offset, seen = [], 0, set()
    for part in _PARTS.decode(text):
        place = Place(*part)
        if place.offset != offset:
            raise _Defect(f"a gap or overlap before {place.path[:200]!r}")
        if place.path in seen:
            raise _Defect(f"{place.path[:200]!r} occurs twice")
        seen.add(place.path)
        places.append(place)
        offset += place.elements
    if not places:
        raise _Defect("it has no modules")
    return Layout(tuple(places))


# Adapters of one kind share a layout, which is parsed once: reading a header then costs nothing per module.
_known_layout = lru_cache(maxsize=64)(_layout)


def _encode(header: Header) -> bytes:
    parts = [(p.path, p.experts, p.rank, p.in_features, p.out_features, p.offset) for p in header.layout.places]
    return msgspec.json.encode(
        _Body(
            dtype=str(header.dtype).removeprefix("torch."),  # type: ignore[arg-type]
            base=header.base,
            run=header.digest,
            config=header.config.decode(),
            scalings=list(header.scalings),
            parts=msgspec.Raw(msgspec.json.encode(parts)),
        )
    )


def _version_of(digest: str) -> int:
    return VERSION if digest.startswith(BLAKE3) else OLDEST


def _aligned(body: int) -> int:
    return -(-(PREFIX.size + body) // ALIGNMENT) * ALIGNMENT
