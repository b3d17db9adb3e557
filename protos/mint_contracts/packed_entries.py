"""Entries as Redis holds them: a few dozen bytes each (catalog.lua has the layout, and a value's first 18 bytes).

After these 18 bytes and any texts without a number follows MessagePack: [tail, revision, rank, bytes]. The tail is
the part of the URI after its root and the adapter's name. A revision that is a SHA-256 digest takes its 32 bytes.
"""

import hashlib
import struct
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from mint_contracts.entries import Entry, split_uri
from mint_contracts.source import Source

NO_NAME = "\x01"  # the first character of a tail whose URI does not contain the adapter's name
REVISION = "\x02"  # stands for the revision in a tail
INLINE = 65535
RETIRED = bytes(6)
OLDER = 8  # older revisions of a name that catalog.lua keeps beside the newest
_DIGEST = "sha256:"
_DIGEST_LENGTH = len(_DIGEST) + 64

_BYTE = [bytes((number,)) for number in range(256)]
_head = struct.Struct(">Q6sHHH").pack
_pack = msgspec.msgpack.Encoder().encode
_rest = msgspec.msgpack.Decoder()  # untyped: msgspec has no union of str and bytes
_labels_text = msgspec.json.Encoder(order="sorted").encode
_labels = msgspec.json.Decoder(dict[str, str])


class Found(NamedTuple):
    """A value from a leaf, with the texts that its numbers stand for."""

    value: bytes
    root: str
    labels: bytes


def identity(state: Entry | Source) -> bytes:
    """Return the six bytes that identify a state among the revisions of its name; never six zeros."""
    return identity_of(state.revision or f"\0{state.uri}")


def identity_of(revision: str) -> bytes:
    """Return the six bytes that identify a named revision: a digest's own first bytes, else a hash; zeros for ""."""
    if (
        revision.startswith(_DIGEST)
        and isinstance(digest := _packed_revision(revision), bytes)
        and digest[:6] != RETIRED
    ):
        return digest[:6]
    return hashlib.blake2b(revision.encode(), digest_size=6).digest() if revision else RETIRED


def batch(rows: Iterable[tuple[int, Entry]]) -> bytes:
    """Encode entries with their sequences as the batch that catalog.lua's `apply` takes."""
    roots: dict[str, int] = {}
    labels: dict[bytes, int] = {}
    pieces: list[bytes] = []
    for sequence, entry in rows:
        name = entry.name.encode()
        if entry.retired:
            pieces += (_BYTE[len(name)], name, _head(sequence, RETIRED, 0, 0, 0))
            continue
        root, tail = _parts(entry)
        text = _text_of(tuple(entry.labels.items())) if entry.labels else b""
        revision = _packed_revision(entry.revision)
        rest = _pack((tail, revision, entry.rank, entry.bytes))
        at_root = roots.setdefault(root, len(roots) + 1)
        at_labels = labels.setdefault(text, len(labels) + 1)
        own = revision[:6] if isinstance(revision, bytes) and revision[:6] != RETIRED else identity(entry)
        pieces += (_BYTE[len(name)], name, _head(sequence, own, at_root, at_labels, len(rest)), rest)
    return b"".join([*_texts([root.encode() for root in roots]), *_texts(labels), *pieces])


def found_in(answer: bytes) -> Found:
    """Decode the answer of catalog.lua's `find`."""
    root, at = _inline(answer, 0)
    labels, at = _inline(answer, at)
    return Found(answer[at:], root.decode(), labels)


def unpack(name: str, found: Found) -> Entry:
    """Decode the entry of a value, which must not be a retired one."""
    value, (root_number, labels_number) = found.value, numbers(found.value)
    root, labels, at = found.root, found.labels, 18
    if root_number == INLINE:
        text, at = _inline(value, at)
        root = text.decode()
    if labels_number == INLINE:
        labels, at = _inline(value, at)
    tail, revision, rank, size = _rest.decode(memoryview(value)[at:])
    if isinstance(revision, bytes):
        revision = _DIGEST + revision.hex()
    if REVISION in tail:
        tail = tail.replace(REVISION, revision.removeprefix(_DIGEST))
    uri = root + tail[1:] if tail.startswith(NO_NAME) else root + name + tail
    return Entry(name, uri, revision, _labels.decode(labels) if labels else {}, rank, size)


def numbers(value: bytes) -> tuple[int, int]:
    """Return the numbers of a value's root and labels."""
    root, labels = struct.unpack_from(">HH", value, 14)
    return root, labels


def is_retired(value: bytes) -> bool:
    """Whether a value marks its name as retired."""
    return value[8:14] == RETIRED


def labels_match(wanted: Sequence[tuple[str, str]], text: bytes) -> bool:
    """Whether the labels encoded in `text` include every wanted pair."""
    if not wanted:
        return True
    if not text:
        return False
    labels = _labels.decode(text)
    return all(labels.get(key) == value for key, value in wanted)


def labels_of(found: Found) -> bytes:
    """Return the text of a value's labels, whether numbered or inline."""
    root_number, labels_number = numbers(found.value)
    if labels_number != INLINE:
        return found.labels
    at = _inline(found.value, 18)[1] if root_number == INLINE else 18
    return _inline(found.value, at)[0]


def _texts(texts: Collection[bytes]) -> Iterable[bytes]:
    yield struct.pack(">H", len(texts))
    for text in texts:
        yield struct.pack(">H", len(text))
        yield text


def _parts(entry: Entry) -> tuple[str, str]:
    """Split a URI into the root that many URIs share, and its own tail."""
    if entry.uri.endswith(f"/{entry.name}"):  # the common case
        return entry.uri[: -len(entry.name)], ""
    root, tail = split_uri(entry.uri, entry.name)
    if root == entry.uri:
        folder, slash, last = entry.uri.rpartition("/")
        root, tail = folder + slash, NO_NAME + last
    word = entry.revision.removeprefix(_DIGEST)
    return root, tail.replace(word, REVISION) if len(word) > 1 and word in tail else tail


def _packed_revision(revision: str) -> str | bytes:
    if len(revision) == _DIGEST_LENGTH and revision.startswith(_DIGEST) and revision.islower():
        try:
            return bytes.fromhex(revision[len(_DIGEST) :])
        except ValueError:
            return revision
    return revision


@lru_cache(maxsize=16384)
def _text_of(labels: tuple[tuple[str, str], ...]) -> bytes:
    """Encode labels as a text that does not depend on their order; cached, as many entries have the same labels."""
    return _labels_text(dict(labels))


def _inline(value: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from(">H", value, at)
    return value[at + 2 : at + 2 + length], at + 2 + length
