"""kubectl and helm as a person uses them, for one cluster, with a time limit on each call."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster.commands import run
from e2e.cluster.errors import CommandFailedError


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod's Ready condition is True."""
    conditions = pod["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


@dataclass(frozen=True)
class Kube:
    """One cluster, reached through its own kubectl and helm."""

    kubectl_path: Path
    helm_path: Path
    kubeconfig: Path
    context: str | None = None

    @property
    def kubectl_command(self) -> list[str]:
        """The kubectl command with the options that select this cluster."""
        chosen = ["--context", self.context] if self.context else []
        return [str(self.kubectl_path), "--kubeconfig", str(self.kubeconfig), *chosen]

    def kubectl(self, *args: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        """Run kubectl and return its output. Raises ClusterError."""
        return run([*self.kubectl_command, *args], stdin=stdin, limit_s=timeout_s)

    def helm(self, *args: str, timeout_s: float = 300) -> str:
        """Run helm and return its output. Raises ClusterError."""
        chosen = ["--kube-context", self.context] if self.context else []
        command = [str(self.helm_path), "--kubeconfig", str(self.kubeconfig), *chosen, *args]
        return run(command, limit_s=timeout_s)

    def apply(self, manifest: str | Mapping[str, Any], namespace: str) -> str:
        """Run `kubectl apply` on YAML text or one object."""
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        return self.kubectl("apply", "-n", namespace, "-f", "-", stdin=text)

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        """Return one object. Raises CommandFailedError if it does not exist."""
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-n", namespace, "-o", "json"))
        return found

    def list(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """Return all objects of a kind that match the label selector."""
        text = self.kubectl("get", kind, "-n", namespace, "-l", selector, "-o", "json")
        items: list[dict[str, Any]] = json.loads(text)["items"]
        return items

    def wait(self, kind_and_name: str, condition: str, namespace: str, timeout_s: int = 180) -> None:
        """Run `kubectl wait --for=condition=...`; on failure the error includes `kubectl describe`."""
        try:
            self.kubectl(
                "wait",
                kind_and_name,
                "-n",
                namespace,
                f"--for=condition={condition}",
                f"--timeout={timeout_s}s",
                timeout_s=timeout_s + 10,
            )
        except CommandFailedError as error:
            described = self.kubectl("describe", kind_and_name, "-n", namespace)
            raise CommandFailedError(f"{error}\n{described}") from None
