"""What the end-to-end tests act on, and the objects that they apply."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import yaml

from e2e import release
from e2e.cluster import Kube
from e2e.forward import forward
from e2e.samples import Samples
from mint_contracts.settings import GATEWAY_PORT

NAMESPACE = "mint-e2e"
Waves = Callable[[str, dict[str, Any]], str]
"""Applies a wave by name and spec, and deletes it after the test."""

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


class GatewayForward:
    """The release's gateway by gRPC, forwarded to `address` ("127.0.0.1:PORT") while the block runs.

    A forward leads to one pod: a test that replaces the pod must call `open` again, which changes the address.
    """

    address: str

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._forwarded = ExitStack()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._forwarded.close()

    def open(self) -> None:
        """Forward to a pod that exists now."""
        self._forwarded.close()
        way = forward(self._kube, "service/mint-gateway", GATEWAY_PORT, release.NAMESPACE)
        self.address = self._forwarded.enter_context(way)


@dataclass(frozen=True)
class World:
    """A cluster with MinT and a Ready base `smollm2`."""

    kube: Kube
    forwarded: GatewayForward
    samples: Samples

    @property
    def gateway(self) -> str:
        """The gateway's address: "127.0.0.1:PORT"."""
        return self.forwarded.address

    def status(self, kind: str, name: str) -> dict[str, Any]:
        """Return the status of a custom resource; empty before the operator's first write."""
        found: dict[str, Any] = self.kube.get(kind, name, NAMESPACE).get("status", {})
        return found

    def condition(self, kind: str, name: str, type_: str) -> dict[str, Any]:
        """Return one condition; empty while it does not exist."""
        conditions = self.status(kind, name).get("conditions", [])
        return next((each for each in conditions if each["type"] == type_), {})


def base_model(name: str, engines: int, uri: str = "pvc://mint-samples/base", **adapters: Any) -> dict[str, Any]:
    """Return a BaseModel of the sample base with exactly `engines` engines."""
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


def wave(names: list[str], *, base: str = "smollm2", replicas: int = 1) -> dict[str, Any]:
    """Return the spec of a wave over adapters in the base's store."""
    return {
        "baseModelRef": {"name": base},
        "adapters": {"names": names},
        "serve": {"replicas": replicas, "residency": "Device"},
    }


def image_of(values: dict[str, Any]) -> dict[str, str]:
    """Return the engines' image, and how it is pulled and run, as the chart does with a cluster's Helm values."""
    chart = release.ROOT / "charts" / "mint"
    images = yaml.safe_load((chart / "values.yaml").read_text())["images"]
    engine = images["engine"] | values.get("images", {}).get("engine", {})
    tag = engine["tag"] or yaml.safe_load((chart / "Chart.yaml").read_text())["appVersion"]
    image = f"{engine['repository']}{'@' if tag.startswith('sha256:') else ':'}{tag}"
    return {
        "image": image,
        "pullPolicy": engine["pullPolicy"],
        "pullSecrets": ",".join(values.get("imagePullSecrets") or ()),
        "runtimeClassName": values.get("runtimeClassName") or "",
    }
