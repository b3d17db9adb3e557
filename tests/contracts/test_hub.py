"""hf:// sources: repositories of models and datasets, named as in huggingface_hub."""

import pytest
from huggingface_hub import parse_hf_uri
from huggingface_hub.errors import HfUriError
from hypothesis import example, given
from hypothesis import strategies as st

from mint_contracts.errors import SourceForbidden
from mint_contracts.hub import Place, place_of
from mint_contracts.source import Source, locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECES = [
    "datasets",
    "models",
    "spaces",
    "buckets",
    "acme",
    "a.b",
    "x_y",
    "a--b",
    "-",
    ".git",
    "@",
    "@main",
    "/",
    "//",
    "é",
]


def place(uri: str) -> Place:
    return place_of(locate(Source(uri, "main")), f"source {uri!r}")


@pytest.mark.parametrize(
    ("uri", "kind", "repository", "path"),
    [
        ("hf://acme/haiku", "model", "acme/haiku", ""),
        ("hf://acme/haiku/adapters/one", "model", "acme/haiku", "adapters/one"),
        ("hf://models/acme/haiku/one", "model", "acme/haiku", "one"),
        ("hf://datasets/acme/data", "dataset", "acme/data", ""),
        ("hf://datasets/acme/data/hard/train.jsonl", "dataset", "acme/data", "hard/train.jsonl"),
        ("hf://acme/datasets/x", "model", "acme/datasets", "x"),
    ],
)
def test_a_uri_names_a_kind_a_repository_and_a_path(uri: str, kind: str, repository: str, path: str) -> None:
    assert place(uri) == Place(kind, repository, path)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("hf://acme", "does not name a repository of the hub; write hf://OWNER/NAME/PATH"),
        ("hf://datasets", "does not name a repository"),
        ("hf://datasets/acme", "does not name a repository"),
        ("hf://datasets//data", "does not name a repository"),
        ("hf://acme/data//x", "does not name a repository"),
        ("hf://acme/da--ta", "does not name a repository"),
        ("hf://acme/data.git", "does not name a repository"),
        ("hf://datasets/acme/data@main", "carries a revision in its uri; set it as the source's revision"),
        ("hf://spaces/acme/data", "lies in spaces of the hub; only models and datasets are read"),
        ("hf://buckets/acme/data", "lies in buckets of the hub"),
    ],
)
def test_a_uri_without_a_repository_is_refused_by_name(uri: str, says: str) -> None:
    with pytest.raises(SourceForbidden, match=f"source '{uri}': {says}"):
        place(uri)


@given(st.lists(st.sampled_from(PIECES), max_size=7).map(lambda pieces: "hf://" + "".join(pieces)))
@example("hf://datasets/acme/data/train@main/x.jsonl")
def test_accepted_uris_mean_what_huggingface_hub_reads_in_them(uri: str) -> None:
    """An accepted URI must parse the same way in huggingface_hub, whose ValueErrors no user should see."""
    try:
        found = place(uri)
    except SourceForbidden:
        return
    parsed = parse_hf_uri(f"hf://{found.at(COMMIT)}")
    assert (parsed.type, parsed.id, parsed.revision, parsed.path_in_repo) == (
        found.kind,
        found.repository,
        COMMIT,
        found.path,
    )


def test_uris_that_huggingface_hub_accepts_are_accepted() -> None:
    for uri in ("hf://a/b", "hf://datasets/A_1/b.c-d/e/f", "hf://models/a/b", f"hf://a/{'b' * 96}"):
        parsed = parse_hf_uri(uri)
        assert (parsed.type, parsed.id, parsed.path_in_repo) == tuple(
            getattr(place(uri), name) for name in ("kind", "repository", "path")
        )
    with pytest.raises(HfUriError):
        parse_hf_uri(f"hf://a/{'b' * 97}")
    with pytest.raises(SourceForbidden):
        place(f"hf://a/{'b' * 97}")
