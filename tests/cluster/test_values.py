"""Helm values, the cluster's environment, and the command's output."""

import io
from pathlib import Path

import pytest
import yaml

from e2e.cluster import __main__ as command
from e2e.cluster import kind
from e2e.cluster.backend import Cluster
from e2e.cluster.native import backend as native
from e2e.cluster.progress import Steps
from e2e.cluster.values import as_yaml

PARTS = {"operator", "gateway", "engine", "redis"}


@pytest.mark.parametrize("values", [native.chart_values(), kind.chart_values(), {}, {"a": {}, "b": "yes"}])
def test_values_are_printed_as_yaml(values: dict[str, object]) -> None:
    assert yaml.safe_load(as_yaml(values)) == values


def test_every_image_of_the_chart_is_named_and_never_pulled_again() -> None:
    for values in (native.chart_values(), kind.chart_values()):
        images = values["images"]
        assert isinstance(images, dict)
        assert set(images) == PARTS
        for image in images.values():
            assert set(image) == {"repository", "tag", "pullPolicy"}
            assert image["pullPolicy"] == "IfNotPresent"


def test_only_the_native_cluster_needs_a_runtime_class() -> None:
    assert native.chart_values()["runtimeClassName"] == "mint-host"
    assert "runtimeClassName" not in kind.chart_values()


def test_a_clusters_environment_finds_its_own_programs_first() -> None:
    cluster = Cluster("native", Path("/data/kubeconfig"), Path("/cache/bin/kubectl"), Path("/cache/bin/helm"))
    env = cluster.env({"PATH": "/usr/bin", "HOME": "/root"})
    assert env == {"PATH": "/cache/bin:/usr/bin", "HOME": "/root", "KUBECONFIG": "/data/kubeconfig"}


def test_options_stand_before_or_after_the_command() -> None:
    before = command.parser().parse_args(["--backend", "native", "up"])
    after = command.parser().parse_args(["up", "--backend", "native"])
    assert before == after


def test_progress_off_a_terminal_is_one_plain_line_a_step() -> None:
    out = io.StringIO()
    with Steps(out).step("build") as step:
        step.note = "3 of 4"
    assert out.getvalue().startswith("cluster: build (3 of 4) 0.")
    assert out.getvalue().count("\n") == 1


def test_a_step_that_fails_says_so() -> None:
    out = io.StringIO()
    with pytest.raises(ValueError, match="no"), Steps(out).step("build"):
        raise ValueError("no")
    assert out.getvalue().endswith(" failed\n")
