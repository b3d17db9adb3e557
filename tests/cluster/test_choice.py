"""Which backend a command uses."""

from pathlib import Path

import pytest

from e2e.cluster import choice
from e2e.cluster.choice import Choice, decide
from e2e.cluster.errors import ClusterError


def test_a_docker_engine_means_kind_and_none_means_native() -> None:
    assert decide(None, None, None, docker=True) == Choice("kind")
    assert decide(None, None, None, docker=False) == Choice("native")


def test_a_context_or_a_name_is_stronger_than_what_the_machine_offers() -> None:
    assert decide(None, "prod", Choice("kind"), docker=True) == Choice("context", "prod")
    assert decide("native", None, None, docker=True) == Choice("native")


def test_the_backend_that_up_used_stays_until_down() -> None:
    assert decide(None, None, Choice("native"), docker=True) == Choice("native")
    assert decide("context", None, Choice("context", "prod"), docker=False) == Choice("context", "prod")


@pytest.mark.parametrize(("wanted", "context"), [("kind", "prod"), ("context", None)])
def test_contradictions_are_refused(wanted: str, context: str | None) -> None:
    with pytest.raises(ClusterError, match="--context"):
        decide(wanted, context, None, docker=False)


def test_the_choice_is_remembered_for_each_data_folder_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_CACHE", str(tmp_path))
    one, two = tmp_path / "one", tmp_path / "two"
    choice.remember(Choice("context", "prod"), one)
    assert choice.used_before(one) == Choice("context", "prod")
    assert choice.used_before(two) is None
    choice.forget(one)
    assert choice.used_before(one) is None
