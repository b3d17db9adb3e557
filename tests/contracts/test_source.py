"""Sources: an accepted URI can only be read at the place that it names."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mint_contracts.errors import SourceForbidden
from mint_contracts.source import SCHEMES, Location, Source, child, locate

_segment = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,8}", fullmatch=True)


@st.composite
def sources(draw: st.DrawFn) -> tuple[Source, Location]:
    """Draw a valid source and its location."""
    scheme = draw(st.sampled_from(SCHEMES))
    host = "" if scheme == "file" else draw(_segment)
    path = "/".join(draw(st.lists(_segment, min_size=1, max_size=4)))
    revision = draw(_segment) if scheme == "hf" else draw(st.just("") | _segment)
    return Source(f"{scheme}://{host}/{path}", revision), Location(scheme, host, path)


@given(sources())
def test_a_good_uri_comes_apart_into_what_it_was_made_of(case: tuple[Source, Location]) -> None:
    source, location = case
    assert locate(source) == location


@given(sources(), _segment)
def test_a_child_lies_inside_its_root_at_the_same_revision(case: tuple[Source, Location], name: str) -> None:
    root, at = case
    below = child(root, f"team/{name}")
    assert locate(below) == Location(at.scheme, at.host, f"{at.path}/team/{name}")
    assert below.revision == root.revision
    assert child(Source(root.uri + "/", root.revision), f"team/{name}") == below


@given(st.text(max_size=40) | st.text("abc:/.%\\@?#", max_size=40).map(lambda text: f"file://{text}"))
@example("file:///a/../../etc/passwd")
@example("file:///a/%2e%2e/b")
@example("file:///a\\..\\b")
@example("pvc://../other/x")
@example("https://[::1")
@example("s3://bucket:notaport/x")
def test_any_text_is_either_refused_or_safe(uri: str) -> None:
    try:
        location = locate(Source(uri))
    except SourceForbidden:
        return
    assert location.scheme in SCHEMES
    assert not {".", ".."} & {location.host, *location.path.split("/")}
    assert "%" not in location.path
    assert "@" not in location.host


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("ftp://host/x", "scheme must be one of"),
        ("/just/a/path", "scheme must be one of"),
        ("s3://key:secret@bucket/x", "no credentials"),
        ("https://host/x?token=1", "no credentials, query"),
        ("https://host/x#y", "fragment"),
        ("pvc://claim/../other", "plain path"),
        ("pvc://../other", "plain path"),
        ("file://host/x", "file:///absolute/path"),
        ("pvc:///x", "must name a claim"),
        ("s3:///x", "must name a host or bucket"),
        ("hf://org/model", "needs spec revision"),
    ],
)
def test_each_refusal_says_what_to_do(uri: str, says: str) -> None:
    with pytest.raises(SourceForbidden, match=says):
        locate(Source(uri))
