"""Installs MinT's chart as a person would: with helm, then the CRDs (which helm installs but never upgrades)."""

from pathlib import Path

from e2e.cluster import Kube

ROOT = Path(__file__).resolve().parents[1]
NAME = "mint"
NAMESPACE = "mint-system"
TIMEOUT_S = 300
STATES = ("--deployed", "--failed", "--pending", "--uninstalling")


def install(kube: Kube, values: Path, *extra: str) -> None:
    """Install or upgrade the release and wait until its Deployments are available. Idempotent."""
    chart = str(ROOT / "charts" / "mint")
    command = ["upgrade", "--install", NAME, chart, "-n", NAMESPACE, "--create-namespace"]
    command += ["--values", str(values), "--wait", f"--timeout={TIMEOUT_S}s", *extra]
    kube.helm(*command, timeout_s=TIMEOUT_S + 30)
    kube.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))


def uninstall(kube: Kube) -> None:
    """Remove the release and the password that it keeps; custom resources and CRDs stay, as helm leaves them."""
    kube.helm("uninstall", NAME, "-n", NAMESPACE, "--ignore-not-found", "--wait", f"--timeout={TIMEOUT_S}s")
    kube.kubectl("delete", "secret", f"{NAME}-redis", "-n", NAMESPACE, "--ignore-not-found")


def installed(kube: Kube, label: str = "") -> bool:
    """Whether helm knows the release, complete or not; with `label` ("key=value"), whether it also has that."""
    return NAME in kube.helm("list", "-n", NAMESPACE, "-q", "-l", label, *STATES).split()
