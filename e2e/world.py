"""What the end-to-end tests act on, and the objects that they apply."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from e2e.cluster import Kube
from e2e.samples import Samples

NAMESPACE = "mint-e2e"
Waves = Callable[[str, dict[str, Any]], str]
"""Applies a wave by name and spec, and takes it away after the test."""

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class World:
    """A cluster with MinT and a Ready base `smollm2`; `gateway` is "127.0.0.1:PORT"."""

    kube: Kube
    gateway: str
    samples: Samples

    def status(self, kind: str, name: str) -> dict[str, Any]:
        """The status of a custom resource; empty before the operator's first word."""
        found: dict[str, Any] = self.kube.get(kind, name, NAMESPACE).get("status", {})
        return found

    def condition(self, kind: str, name: str, type_: str) -> dict[str, Any]:
        """One condition; empty while it is not there."""
        conditions = self.status(kind, name).get("conditions", [])
        return next((each for each in conditions if each["type"] == type_), {})


def base_model(name: str, engines: int, uri: str = "pvc://mint-samples/base", **adapters: Any) -> dict[str, Any]:
    """A BaseModel of the sample base with exactly `engines` engines."""
    limits: dict[str, Any] = {
        "maxRank": 64,
        "deviceSlots": 8,
        "hostMemory": "512Mi",
        "diskCache": "1Gi",
        "store": {"uri": "pvc://mint-samples/adapters"},
        "baseNames": [BASE_NAME],
    }
    engine = {
        "replicas": {"min": engines, "max": engines},
        "device": "cpu",
        "dtype": "float32",
        "kvCacheMemory": "512Mi",
        "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
    }
    return {
        "apiVersion": "mint.dev/v1alpha1",
        "kind": "BaseModel",
        "metadata": {"name": name},
        "spec": {
            "source": {"uri": uri},
            "engine": engine,
            "adapters": limits | adapters,
            "training": {"store": {"uri": "pvc://mint-samples/training"}},
        },
    }


def wave(names: list[str], *, base: str = "smollm2", replicas: int = 1, residency: str = "Device") -> dict[str, Any]:
    """The spec of a wave over adapters of the base's store."""
    return {
        "baseModelRef": {"name": base},
        "adapters": {"names": names},
        "serve": {"replicas": replicas, "residency": residency},
    }


def image_of(values: dict[str, Any]) -> dict[str, str]:
    """The engine's image and RuntimeClass out of a cluster's Helm values."""
    engine = values["images"]["engine"]
    return {**engine, "runtimeClassName": values.get("runtimeClassName", "")}
