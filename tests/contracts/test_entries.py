"""Catalog entries: what a line may contain, and that the form stored in Redis means the same."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.entries import LABELS_MAX, Entry, check, plainly_good, read_line
from mint_contracts.errors import InvalidRequest, MintError, SourceForbidden
from mint_contracts.packed_entries import INLINE, Found, identity, is_retired, labels_match, numbers, unpack
from tests.contracts.catalogs import packed

SEGMENTS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True)
NAMES = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join)
REVISIONS = st.one_of(
    st.just(""),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:+/-]{0,20}", fullmatch=True),
    st.binary(max_size=9).map(lambda data: f"sha256:{hashlib.sha256(data).hexdigest()}"),
    st.binary(max_size=9).map(lambda data: f"sha256:{hashlib.sha256(data).hexdigest().upper()}"),
)
LABELS = st.dictionaries(
    SEGMENTS, st.one_of(st.just(""), SEGMENTS.map(lambda text: text.replace("/", "-"))), max_size=4
)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    name, revision = draw(NAMES), draw(REVISIONS)
    root = draw(st.sampled_from(["s3://bucket", "pvc://claim/adapters", "file:///a", "https://host:8443"]))
    word = revision.removeprefix("sha256:").replace("/", "-").replace(":", "-") or "v1"
    tail = draw(
        st.sampled_from([f"/{name}", f"/{name}/{word}", f"/{word}", "/elsewhere", f"/{name}-lora", f"/{name}{name}"])
    )
    return Entry(
        name, root + tail, revision, draw(LABELS), draw(st.integers(0, 65536)), draw(st.integers(0, 1 << 50))
    )


@given(entries())
def test_an_entry_is_what_its_line_and_its_packed_form_say(entry: Entry) -> None:
    assert read_line(msgspec.json.encode(entry)) == entry
    found = packed(entry, sequence=7)
    assert unpack(entry.name, found) == entry
    assert not is_retired(found.value)


ODD = st.sampled_from(
    [
        "",
        "a",
        "a\nb",
        "a b",
        "-a",
        "a-",
        "a//b",
        "a/b/c/d/e",
        "a" * 201,
        "s3://b/../c",
        "s3://b/a\ns3://b/a",
        "hf://o/r",
    ]
)
LINES = st.builds(
    Entry,
    st.one_of(NAMES, ODD),
    st.one_of(NAMES.map(lambda name: f"s3://bucket/{name}"), ODD),
    st.one_of(REVISIONS, ODD),
    st.one_of(LABELS, st.dictionaries(ODD, ODD, max_size=1)),
    st.integers(-1, 65537),
    st.sampled_from([-1, 0, 1 << 50, 1 + (1 << 50)]),
    st.booleans(),
)


def sound(entry: Entry) -> bool:
    try:
        check(entry)
    except MintError:
        return False
    return True


@given(st.lists(st.one_of(LINES, entries()), max_size=5))
def test_entries_accepted_in_bulk_are_accepted_one_by_one(several: list[Entry]) -> None:
    assert not plainly_good(several) or all(map(sound, several))


@given(st.lists(entries().filter(lambda entry: ":8443" not in entry.uri and "+" not in entry.uri), max_size=5))
def test_common_entries_are_accepted_in_bulk(several: list[Entry]) -> None:
    assert plainly_good(several)


@pytest.mark.parametrize("end", ["!", ".", "//x", "/..", "é"])
def test_a_long_uri_is_checked_to_its_end(end: str) -> None:
    entry = Entry("a", f"s3://b/a{'x' * 900}{end}")
    assert sound(entry) == (end != "/..")


@given(entries())
def test_texts_without_a_number_are_stored_in_the_value(entry: Entry) -> None:
    found = packed(entry, sequence=7, numbered=False)
    assert numbers(found.value) == (INLINE, INLINE)
    assert unpack(entry.name, Found(found.value, "", b"")) == entry


@given(entries(), entries())
def test_revisions_are_distinguished(one: Entry, other: Entry) -> None:
    same = (one.revision or one.uri) == (other.revision or other.uri)
    assert (identity(one) == identity(other)) == same
    assert any(identity(one))


def test_a_usual_entry_takes_so_few_bytes_that_redis_keeps_it_compact() -> None:
    digest = f"sha256:{hashlib.sha256(b'x').hexdigest()}"
    usual = Entry("tenant-00042/support-0001234", f"s3://adapters/tenant-00042/support-0001234/{digest[7:]}", digest,
                  {"team": "blue", "tier": "gold"}, 32, 19_600_000)  # fmt: skip
    assert len(packed(usual, sequence=1_790_000_000_000_000).value) <= 64  # hash-max-listpack-value, by default


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        (b'{"name": "a/b"}', InvalidRequest, "needs a uri"),
        (b'{"uri": "s3://b/x"}', InvalidRequest, "name"),
        (b'{"name": "a/b", "uri": "s3://b/x", "label": {}}', InvalidRequest, "label"),
        (b'{"name": "a@b", "uri": "s3://b/x"}', InvalidRequest, "not a valid name"),
        (b'{"name": "a/b", "uri": "ftp://b/a/b"}', SourceForbidden, "scheme"),
        (b'{"name": "a/b", "uri": "s3://key:secret@b/a/b"}', SourceForbidden, "credentials"),
        (b'{"name": "a/b", "uri": "s3://b/../a/b"}', SourceForbidden, "'..'"),
        (b'{"name": "a/b", "uri": "s3://b/a/b/../c"}', SourceForbidden, "'..'"),
        (b'{"name": "a/b", "uri": "s3://b/a b"}', InvalidRequest, "blanks"),
        (b'{"name": "a/b", "uri": "hf://a/b"}', SourceForbidden, "revision"),
        (b'{"name": "a/b", "uri": "s3://b/x", "rank": -1}', InvalidRequest, "rank -1"),
        (b'{"name": "a/b", "uri": "s3://b/x", "revision": "a b"}', InvalidRequest, "revision"),
        (b'{"name": "a/b", "uri": "s3://b/x", "labels": {"a b": "c"}}', InvalidRequest, "label 'a b'"),
        (b'{"name": "a/b", "uri": "s3://b/x", "labels": {"a": 1}}', InvalidRequest, "labels"),
        (b"[1]", InvalidRequest, "not an entry"),
        (b"{", InvalidRequest, "not an entry"),
        (b'{"name": "a/b", "uri": "s3://b/caf\xe9"}', InvalidRequest, "not an entry"),
    ],
)
def test_a_bad_line_is_refused_and_says_why(line: bytes, kind: type[MintError], message: str) -> None:
    with pytest.raises(kind) as refused:
        read_line(line)
    assert message in str(refused.value)


def test_the_number_of_labels_is_limited() -> None:
    labels = {f"k{number}": "v" for number in range(LABELS_MAX + 1)}
    with pytest.raises(InvalidRequest, match="33 labels"):
        check(Entry("a/b", "s3://b/a/b", labels=labels))


def test_a_retired_name_needs_no_place() -> None:
    assert read_line(b'{"name": "a/b", "retired": true}').retired


def test_labels_match_when_every_wanted_pair_is_there() -> None:
    text = b'{"team":"blue","tier":"gold"}'
    assert labels_match([], b"")
    assert labels_match([("tier", "gold")], text)
    assert labels_match([("team", "blue"), ("tier", "gold")], text)
    assert not labels_match([("team", "red"), ("tier", "gold")], text)
    assert not labels_match([("tier", "gold")], b"")
