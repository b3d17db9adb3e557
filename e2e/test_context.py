"""A user's own cluster is used as it is: these tests reach the demo's cluster as a stranger would."""

import json
from pathlib import Path

import pytest

from e2e.cluster import Cluster, ClusterError
from e2e.cluster.context import VALUES_FILE, ContextBackend
from e2e.cluster.progress import Steps


@pytest.fixture
def context(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a context that answers."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    monkeypatch.setenv("PATH", cluster.env()["PATH"])
    monkeypatch.delenv(VALUES_FILE, raising=False)
    return cluster.kube.kubectl("config", "current-context").strip()


def test_its_owner_is_asked_for_images(context: str) -> None:
    with pytest.raises(ClusterError, match=VALUES_FILE):
        ContextBackend(context).up(Steps())


def test_with_images_it_is_used_and_left_as_it_is(
    context: str, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = tmp_path / "values.json"
    values.write_text(json.dumps(cluster.values()))
    monkeypatch.setenv(VALUES_FILE, str(values))
    backend = ContextBackend(context)

    found = backend.up(Steps())
    backend.down(Steps())

    assert found.values() == cluster.values()
    assert found.kube.kubectl("get", "nodes", "-o", "name").startswith("node/")


def test_a_context_that_is_not_there_is_said_not_to_answer(context: str) -> None:
    assert ContextBackend(f"not-{context}").find() is None
