"""Catalog entries: one adapter as one line of JSON, the form of manifests and of registrations."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec

from mint_contracts.errors import InvalidRequest
from mint_contracts.names import ADAPTER_MAX_LENGTH, REVISION_MAX_LENGTH, REVISION_PATTERN, check_adapter
from mint_contracts.source import Source, locate

LABELS_MAX = 32
LABEL_KEY_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$"
LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"
URI_MAX_LENGTH = 1024
RANK_MAX = 65536
BYTES_MAX = 1 << 50

_LABEL_KEY, _LABEL_VALUE = re.compile(LABEL_KEY_PATTERN), re.compile(LABEL_VALUE_PATTERN)
_REVISION = re.compile(REVISION_PATTERN)
_BLANK = re.compile(r"[\x00-\x20\x7f]")

# Possessive, so that nothing is tried twice; a text that they do not match may still be valid.
_WORD = "[A-Za-z0-9][A-Za-z0-9._-]*+"
_PLAIN_TAIL = re.compile(rf"(?:/?+{_WORD})*+")
# These match a text of many lines, each obviously valid.
_NAMES = re.compile(rf"(?:{_WORD}(?<=[A-Za-z0-9])(?:/{_WORD}(?<=[A-Za-z0-9])){{0,3}}+\n)*+")
_URIS = re.compile(rf"(?:(?:(?:s3|gs|pvc|https?)://|file:///){_WORD}(?:/{_WORD})*+\n)*+")
_REVISIONS = re.compile(r"(?:(?:[A-Za-z0-9][A-Za-z0-9._:+/-]*+)?+\n)*+")


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One revision of an adapter: where it is fetched from, and the labels and sizes that it may be selected by.

    `revision` pins a commit of an hf:// source; for other sources it is the registrar's own name for this state,
    ideally a digest. A name means its newest entry; clients request an older one as NAME@REVISION. Unknown fields are
    refused, as they are likely misspelt.
    """

    name: str
    uri: str = ""
    revision: str = ""
    labels: dict[str, str] = {}
    rank: int = 0  # 0: unknown
    bytes: int = 0  # total size of its files; 0: unknown
    retired: bool = False  # the name is retired from here on

    @property
    def source(self) -> Source:
        """The source that it is fetched from."""
        return Source(uri=self.uri, revision=self.revision)


Row = tuple[int, Entry]  # an entry with its sequence

_line = msgspec.json.Decoder(Entry)


def read_line(text: bytes) -> Entry:
    """Decode and check the entry of one line. Raises InvalidRequest, or what `check` raises."""
    try:
        entry = _line.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest("line", f"is not an entry ({error}); write one JSON object with name and uri") from None
    return check(entry)


def read_lines(text: bytes) -> list[Entry]:
    """Decode the entries of complete lines, unchecked: the fast way. Raises MsgspecError or UnicodeDecodeError."""
    return _line.decode_lines(text)


def check(entry: Entry) -> Entry:
    """Return the entry itself if all of it is valid. Raises InvalidRequest or SourceForbidden."""
    check_adapter(entry.name)
    subject = f"adapter {entry.name!r}"
    if entry.retired:
        return entry
    if not 0 < len(entry.uri) <= URI_MAX_LENGTH or _BLANK.search(entry.uri):
        raise InvalidRequest(subject, f"needs a uri of at most {URI_MAX_LENGTH} characters without blanks")
    if not 0 <= entry.rank <= RANK_MAX or not 0 <= entry.bytes <= BYTES_MAX:
        raise InvalidRequest(subject, f"has rank {entry.rank} and {entry.bytes} bytes, which no adapter has")
    if entry.revision and not _REVISION.fullmatch(entry.revision):
        raise InvalidRequest(
            subject,
            f"has revision {entry.revision[:128]!r}; use up to 128 letters, digits and '.', '_', ':', '+', '/', '-'",
        )
    root, tail = split_uri(entry.uri, entry.name)
    if _PLAIN_TAIL.fullmatch(tail) and root != entry.uri:
        _check_root(root, pinned=bool(entry.revision))
    else:
        locate(entry.source)
    if entry.labels:
        check_labels(entry.labels, subject)
    return entry


def plainly_good(entries: Sequence[Entry]) -> bool:
    """Whether all are certain to pass `check`, at a fifth of its cost for many. If False, call `check` for each."""
    if not entries:
        return True
    if any(entry.retired for entry in entries):
        return False
    ranks, sizes = [entry.rank for entry in entries], [entry.bytes for entry in entries]
    return (
        _lines_match(_NAMES, [entry.name for entry in entries], ADAPTER_MAX_LENGTH)
        and _lines_match(_URIS, [entry.uri for entry in entries], URI_MAX_LENGTH)
        and _lines_match(_REVISIONS, [entry.revision for entry in entries], REVISION_MAX_LENGTH)
        and min(ranks) >= 0 and max(ranks) <= RANK_MAX
        and min(sizes) >= 0 and max(sizes) <= BYTES_MAX
        and not any(map(_fault, {tuple(entry.labels.items()) for entry in entries}))
    )  # fmt: skip


def _lines_match(pattern: re.Pattern[str], texts: Sequence[str], longest: int) -> bool:
    """Whether every text is one line that matches the pattern and is at most `longest` characters."""
    lines = "\n".join(texts) + "\n"
    return max(map(len, texts)) <= longest and lines.count("\n") == len(texts) and bool(pattern.fullmatch(lines))


def check_labels(labels: Mapping[str, str], subject: str) -> None:
    """Check labels by the rules of Kubernetes labels, so that waves can match them. Raises InvalidRequest."""
    if fault := _fault(tuple(labels.items())):
        raise InvalidRequest(subject, fault)


def split_uri(uri: str, name: str) -> tuple[str, str]:
    """Split a URI at the adapter's name: the text before it and after it; all of it before if it lacks the name."""
    at = uri.rfind(f"/{name}") + 1
    return (uri[:at], uri[at + len(name) :]) if at else (uri, "")


@lru_cache(maxsize=65536)
def _check_root(root: str, *, pinned: bool) -> None:
    """Check that a URI with this root and a plain tail can be located; cached, as many entries share a root."""
    locate(Source(uri=f"{root}x", revision="r" if pinned else ""))


@lru_cache(maxsize=16384)
def _fault(labels: tuple[tuple[str, str], ...]) -> str:
    """Return what is wrong with labels, "" if nothing; cached, as many entries have the same labels."""
    if len(labels) > LABELS_MAX:
        return f"has {len(labels)} labels; {LABELS_MAX} are the most"
    for key, value in labels:
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            return f"has label {key[:63]!r}: {value[:63]!r}; keys and values are short words as Kubernetes' are"
    return ""
