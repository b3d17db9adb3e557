"""The user's own cluster: the user says which images it can pull."""

from pathlib import Path

import pytest

from e2e.cluster.context import VALUES_FILE, given_values
from e2e.cluster.errors import ClusterError


def test_without_a_values_file_there_are_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VALUES_FILE, raising=False)

    assert given_values() == {}


def test_the_values_of_the_file_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("images: {engine: {repository: here/engine, tag: v1}}\n")
    monkeypatch.setenv(VALUES_FILE, str(path))

    assert given_values() == {"images": {"engine": {"repository": "here/engine", "tag": "v1"}}}


@pytest.mark.parametrize("text", ["- a list", "images: {", "just words"])
def test_a_file_that_holds_no_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(text)
    monkeypatch.setenv(VALUES_FILE, str(path))

    with pytest.raises(ClusterError, match=r"values\.yaml"):
        given_values()
