"""The chart, rendered by helm as for a user, and its objects taken apart."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import yaml

from tests.apiserver import ROOT, binaries
from tests.crds.admission import merged

CHART = ROOT / "charts" / "mint"
RELEASE = "mint"
NAMESPACE = "mint-system"
KUBE_VERSION = "1.34.4"

Object = dict[str, Any]
Values = dict[str, Any]

# MinT's images are in no public registry, so the chart cannot be rendered without naming some.
PUSHED: Values = {
    "images": {
        "operator": {"repository": "mint/control"},
        "gateway": {"repository": "mint/control"},
        "engine": {"repository": "mint/engine"},
    }
}
DEFAULTS: Values = {}
NAMESPACED: Values = {"watchNamespaces": ["team-a", "team-b"]}
EXTERNAL: Values = {
    "redis": {
        "external": {"url": "rediss://redis.example:6380/0", "existingSecret": "redis-auth", "caSecret": "redis-ca"}
    }
}
EVERYTHING: Values = {
    "imagePullSecrets": ["registry"],
    "runtimeClassName": "mint-host",
    "caBundle": {"configMap": "corporate", "key": "bundle.pem"},
    "userRoles": {"aggregate": True},
    "operator": {
        "nodeSelector": {"pool": "control"},
        "podLabels": {"team": "ml"},
        "podAnnotations": {"a": "b"},
        "extraEnv": [{"name": "NO_PROXY", "value": "10.0.0.0/8"}],
        "tolerations": [{"key": "control", "operator": "Exists"}],
        "manifests": {"existingSecret": "s3-reader"},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/reader"}},
    },
    "gateway": {
        "replicas": 3,
        "terminationGracePeriodSeconds": 600,
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}},
        "podLabels": {"team": "ml"},
        "podAnnotations": {"a": "b"},
        "extraEnv": [{"name": "AWS_REGION", "value": "eu-1"}],
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "tls": {"secretName": "gateway-tls"},
        "keys": {
            "secretName": "gateway-keys",
            "scopes": {"team-a": {"adapters": ["acme/"], "namespaces": ["team-a"]}, "team-b": {"adapters": []}},
        },
        "catalog": {"existingSecret": "s3", "claims": ["catalog"]},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/catalogs"}},
    },
    "redis": {
        "persistence": {"size": "2Gi", "storageClassName": "fast"},
        "priorityClassName": "high",
        "podLabels": {"team": "ml"},
        "podAnnotations": {"a": "b"},
    },
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True, "labels": {"team": "ml"}, "annotations": {"grafana_folder": "MinT"}},
    },
}
BARE: Values = {
    "networkPolicy": {"enabled": False},
    "redis": {"persistence": {"enabled": False}, "existingSecret": "own"},
}
VARIANTS = {
    "defaults": DEFAULTS,
    "namespaced": NAMESPACED,
    "external": EXTERNAL,
    "everything": EVERYTHING,
    "bare": BARE,
}
# The labels that the operator gives engines' pods and Services.
ENGINE_LABELS = {
    "app.kubernetes.io/name": "mint-engine",
    "app.kubernetes.io/managed-by": "mint",
    "app.kubernetes.io/component": "engine",
    "mint.dev/base-model": "smollm2",
}


class HelmError(RuntimeError):
    """helm exited non-zero; the message is what it printed."""


def helm(*args: str, values: Values | None = None) -> str:
    """Run helm with `values` on standard input; return what it printed. Raises HelmError."""
    command = [str(binaries() / "helm"), *args]
    if values is not None:
        command += ["--values", "-"]
    done = subprocess.run(
        command, input=json.dumps(values or {}), capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        raise HelmError(done.stderr + done.stdout)
    return done.stdout


def render(values: Values, *args: str, release: str = RELEASE) -> list[Object]:
    """Return every object of an installation with these values, without the CRDs.

    The images are those of `PUSHED`, unless the values name others.
    """
    command = ("template", release, str(CHART), "-n", NAMESPACE, "--kube-version", KUBE_VERSION, *args)
    text = helm(*command, values=merged(PUSHED, values))
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(objects: list[Object], *kinds: str) -> dict[str, Object]:
    """Return the objects of these kinds, by name."""
    return {each["metadata"]["name"]: each for each in objects if each["kind"] in kinds}


def workloads(objects: list[Object]) -> dict[str, Object]:
    """Return the Deployments and StatefulSets, by name."""
    return of_kind(objects, "Deployment", "StatefulSet")


def pod(workload: Object) -> Object:
    """Return the pod spec of a workload."""
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def labels(workload: Object) -> dict[str, str]:
    """Return the labels of a workload's pods."""
    found: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return found


def container(workload: Object) -> Object:
    """Return the only container of a workload."""
    (only,) = pod(workload)["containers"]
    found: Object = only
    return found


def environment(workload: Object) -> dict[str, Any]:
    """Return the environment of a workload's container: each variable's text, or its source."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container(workload)["env"]}


def rules(objects: list[Object]) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Return what the operator's roles allow, as (group, resource, verb, resourceNames) once per role."""
    for role in of_kind(objects, "Role", "ClusterRole").values():
        if role["metadata"]["labels"]["app.kubernetes.io/component"] != "operator":
            continue
        for rule in role["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for verb in rule["verbs"]:
                        yield group, resource, verb, tuple(rule.get("resourceNames", ()))


def matches(selector: dict[str, Any], given: dict[str, str]) -> bool:
    """Return whether a label selector matches these labels."""
    by_label = selector.get("matchLabels", selector if "matchExpressions" not in selector else {})
    by_set = selector.get("matchExpressions", [])
    return by_label.items() <= given.items() and all(given.get(each["key"]) in each["values"] for each in by_set)


def monitors(objects: list[Object], name: str) -> tuple[Object, Object]:
    """Return the ServiceMonitors of a release's own parts and of its engines."""
    found = of_kind(objects, "ServiceMonitor")
    assert found.keys() == {name, f"{name}-engines"}
    return found[name], found[f"{name}-engines"]


def found_by(monitor: Object, objects: list[Object]) -> set[str]:
    """Return the names of the Services that a ServiceMonitor selects."""
    [port] = [each["port"] for each in monitor["spec"]["endpoints"]]
    return {
        name
        for name, each in of_kind(objects, "Service").items()
        if matches(monitor["spec"]["selector"], each["metadata"]["labels"])
        and port in {given["name"] for given in each["spec"]["ports"]}
    }


def alerts(objects: list[Object]) -> list[Object]:
    rule = of_kind(objects, "PrometheusRule")["mint"]
    found: list[Object] = [each for group in rule["spec"]["groups"] for each in group["rules"]]
    return found
