"""The chart's life cycle: install, upgrade and uninstall a second release that watches one namespace."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e import release
from e2e.cluster import Kube
from e2e.waiting import until
from e2e.world import World

NAME = NAMESPACE = "mint-second"


@pytest.fixture
def second(world: World, values: Path) -> Iterator[Kube]:
    """A second release next to the first, in its own namespace."""
    kube = world.kube
    kube.helm(*_upgrade(values), "--install", "--create-namespace")
    yield kube
    kube.helm("uninstall", NAME, "-n", NAMESPACE, "--ignore-not-found", "--wait")
    kube.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def _upgrade(values: Path, *extra: str) -> list[str]:
    chart = str(release.ROOT / "charts" / "mint")
    command = ["upgrade", NAME, chart, "-n", NAMESPACE, "--values", str(values), "--wait", "--timeout=180s"]
    return [*command, "--set", f"watchNamespaces={{{NAMESPACE}}}", *extra]


def test_install_upgrade_and_uninstall(second: Kube, values: Path) -> None:
    secret = _password(second)

    second.helm(*_upgrade(values, "--set", "gateway.replicas=2"))

    ready = second.get("deployment", "mint-second-gateway", NAMESPACE)["status"]["readyReplicas"]
    assert ready == 2
    assert _password(second) == secret, "an upgrade must keep the Redis password"

    second.helm("uninstall", NAME, "-n", NAMESPACE, "--wait")

    until("the pods to be gone", lambda: not second.list("pod", NAMESPACE))
    left = second.kubectl("get", "all,configmap,role,rolebinding,serviceaccount", "-n", NAMESPACE, "-o", "name")
    ours = [line for line in left.split() if "mint" in line]
    assert ours == []
    assert second.get("crd", "adapterwaves.mint.dev", "default"), "CRDs outlive a release, so that no wave is lost"


def _password(kube: Kube) -> list[str]:
    secrets = kube.list("secret", NAMESPACE, "app.kubernetes.io/managed-by=Helm")
    assert secrets
    return [secret["data"]["password"] for secret in secrets if "password" in secret["data"]]
