"""values.yaml and values.schema.json agree, and the schema refuses invalid values."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.world import image_of
from mint_contracts import settings
from mint_operator import settings as operator_settings
from tests.apiserver import ROOT
from tests.chart.rendering import (
    CHART,
    EVERYTHING,
    EXTERNAL,
    KUBE_VERSION,
    PUSHED,
    HelmError,
    Values,
    environment,
    helm,
    render,
    workloads,
)
from tests.crds.admission import merged

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
VALUES: Values = yaml.safe_load((CHART / "values.yaml").read_text())
APP_VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]

MAPS = {"strings", "podLabels", "resources", "scopes", "affinity"}  # whose keys are the user's own, or Kubernetes'


def keys(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield every key of the schema, without those below maps of free keys."""
    for name, child in schema.get("properties", {}).items():
        reference = child.get("$ref", "").rpartition("/")[2]
        yield f"{path}.{name}"
        if reference not in MAPS:
            yield from keys(SCHEMA["definitions"][reference] if reference else child, f"{path}.{name}")


def given(values: Values, path: str = "") -> Iterator[str]:
    """Yield every key of values.yaml, as deep as the schema describes them."""
    for name, child in values.items():
        yield f"{path}.{name}"
        if isinstance(child, dict) and name != "resources":
            yield from given(child, f"{path}.{name}")


def test_every_value_is_in_the_schema_and_every_key_of_the_schema_has_a_default() -> None:
    assert sorted(given(VALUES)) == sorted(set(keys(SCHEMA)) - {".global", ".enabled"})


@pytest.mark.parametrize("enabled", [True, False])
def test_a_parent_chart_can_switch_this_one_by_a_condition(tmp_path: Path, enabled: bool) -> None:
    dependency = {"name": "mint", "version": ">=0.0.0-0", "condition": "mint.enabled"}
    chart = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [dependency]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart))
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "mint").symlink_to(CHART)
    values = {"mint": {"enabled": enabled, **PUSHED}}
    text = helm("template", "all", str(tmp_path), "--kube-version", KUBE_VERSION, values=values)
    assert ("name: all-mint-operator" in text) is enabled


def test_every_object_of_the_schema_is_closed() -> None:
    def opened(node: Any, path: str) -> Iterator[str]:
        if isinstance(node, dict):
            if (
                "properties" in node
                and node.get("type") == "object"
                and node.get("additionalProperties") is not False
            ):
                yield path
            for name, child in node.items():
                yield from opened(child, f"{path}.{name}")

    assert list(opened(SCHEMA, "")) == []


def scopes(of: object) -> Values:
    """Return values that take scopes from a Secret's keys."""
    return {"gateway": {"keys": {"secretName": "gateway-keys", "scopes": of}}}


NONSENSE: list[tuple[Values, str]] = [
    ({"gatway": {}}, "'gatway' not allowed"),
    ({"gateway": {"replica": 2}}, "'replica' not allowed"),
    ({"gateway": {"replicas": "two"}}, "/gateway/replicas"),
    ({"gateway": {"replicas": -1}}, "/gateway/replicas"),
    ({"gateway": {"terminationGracePeriodSeconds": 44}}, "/gateway/terminationGracePeriodSeconds"),
    ({"gateway": {"service": {"type": "ExternalName"}}}, "/gateway/service/type"),
    ({"gateway": {"tls": {"secretName": "A Secret"}}}, "/gateway/tls/secretName"),
    ({"gateway": {"keys": {"team-a": "word"}}}, "'team-a' not allowed"),
    (scopes({"team-a": {"adapter": ["acme/"]}}), "'adapter' not allowed"),
    (scopes({"team-a": {"adapters": [""]}}), "/gateway/keys/scopes/team-a/adapters/0"),
    (scopes({"team-a": {"adapters": ["acme/*"]}}), "/gateway/keys/scopes/team-a/adapters/0"),
    (scopes({"team-a": {"adapters": "acme/"}}), "/gateway/keys/scopes/team-a/adapters"),
    (scopes({"team-a": {"namespaces": ["Team_A"]}}), "/gateway/keys/scopes/team-a/namespaces/0"),
    (scopes({"team-a": {"namespaces": [""]}}), "/gateway/keys/scopes/team-a/namespaces/0"),
    (scopes({"team-a": {}}), "/gateway/keys/scopes/team-a"),
    (scopes({"team-a": {"adapters": None}}), "/gateway/keys/scopes/team-a"),
    (scopes({"team-a": None}), "/gateway/keys/scopes/team-a"),
    (scopes({"team-a": ["acme/"]}), "/gateway/keys/scopes/team-a"),
    (scopes({"team a": {"adapters": ["acme/"]}}), "'team a' does not match"),
    ({"gateway": {"keys": {"scopes": {"team-a": {"adapters": ["acme/"]}}}}}, "/gateway/keys/secretName"),
    ({"gateway": {"tls": {"secret": "gateway-tls"}}}, "'secret' not allowed"),
    ({"gateway": {"resources": {"request": {}}}}, "'request' not allowed"),
    ({"gateway": {"resources": {"limits": {"memory": "4 GB"}}}}, "/gateway/resources/limits/memory"),
    ({"images": {"engine": {"tag": "a tag"}}}, "/images/engine/tag"),
    ({"images": {"engine": {"repository": "registry.example/mint/engine@1.2"}}}, "/images/engine/repository"),
    ({"images": {"engine": {"repository": "registry.example:5000/mint/engine:1.2"}}}, "/images/engine/repository"),
    ({"images": {"engine": {"repository": ""}}}, "images.engine.repository is not set"),
    ({"images": {"redis": {"tag": ""}}}, "/images/redis/tag"),
    ({"images": {"redis": {"repository": ""}}}, "/images/redis/repository"),
    ({"images": {"engine": {"pullPolicy": "Sometimes"}}}, "/images/engine/pullPolicy"),
    ({"images": {"trainer": {}}}, "'trainer' not allowed"),
    ({"imagePullSecrets": [{"name": "registry"}]}, "/imagePullSecrets/0"),
    ({"watchNamespaces": ["Team_A"]}, "/watchNamespaces/0"),
    ({"watchNamespaces": ["a", "a"]}, "/watchNamespaces"),
    ({"userRoles": {"aggregate": "edit"}}, "/userRoles/aggregate"),
    ({"redis": {"external": {"url": "redis://user:word@host:6379"}}}, "/redis/external/url"),
    ({"redis": {"external": {"url": "redis://host:6379?password=word"}}}, "/redis/external/url"),
    ({"redis": {"external": {"url": "redis://host:port"}}}, "/redis/external/url"),
    ({"redis": {"external": {"url": "redis://one,two"}}}, "/redis/external/url"),
    ({"redis": {"external": {"url": "http://host"}}}, "/redis/external/url"),
    ({"redis": {"external": {"url": "redis://host:6379", "caSecret": "ca"}}}, "/redis/external/url"),
    ({"redis": {"external": {"existingSecret": "redis-auth"}}}, "/redis/external/url"),
    ({"redis": {"external": {"engineSecret": "redis-auth"}}}, "/redis/external/url"),
    ({"redis": {"external": {"url": "redis://host", "gatewaySecret": "g"}}}, "/redis/external/existingSecret"),
    ({"redis": {"external": {"url": "redis://host"}, "existingSecret": "own"}}, "/redis/external/existingSecret"),
    ({"redis": {"persistence": {"enabled": "yes"}}}, "/redis/persistence/enabled"),
    ({"redis": {"persistence": {"size": "1 Gi"}}}, "/redis/persistence/size"),
    ({"redis": {"maxMemory": "half"}}, "/redis/maxMemory"),
    ({"operator": {"tolerations": [{"operator": "Maybe"}]}}, "/operator/tolerations/0/operator"),
    ({"operator": {"extraEnv": {"HTTPS_PROXY": "http://proxy"}}}, "/operator/extraEnv"),
    ({"gateway": {"extraEnv": [{"name": "A", "from": "x"}]}}, "'from' not allowed"),
    ({"gateway": {"affinity": {"nodeSelectorTerms": []}}}, "'nodeSelectorTerms' not allowed"),
    ({"redis": {"podLabels": {"team": 1}}}, "/redis/podLabels/team"),
    ({"redis": {"podLabels": {"team": "machine learning"}}}, "/redis/podLabels/team"),
    ({"gateway": {"podLabels": {"app.kubernetes.io/component": "x"}}}, "/gateway/podLabels/app.kubernetes.io"),
    ({"operator": {"podLabels": {"mint.dev/base-model": "x"}}}, "/operator/podLabels/mint.dev"),
    ({"caBundle": {"secret": "ca"}}, "'secret' not allowed"),
    ({"fullnameOverride": "9lora"}, "/fullnameOverride"),
    ({"enabled": "yes"}, "/enabled"),
    ({"networkPolicy": {"enabled": 1}}, "/networkPolicy/enabled"),
    ({"metrics": {"serviceMonitor": {"interval": "often"}}}, "/metrics/serviceMonitor/interval"),
]


@pytest.mark.parametrize(("values", "where"), NONSENSE, ids=lambda part: repr(part)[:70])
def test_invalid_values_are_refused_by_path(values: Values, where: str) -> None:
    with pytest.raises(HelmError) as refusal:
        render(values)
    assert where in str(refusal.value)


@pytest.mark.parametrize("part", ["operator", "gateway"])
def test_users_cannot_set_variables_that_the_chart_sets(part: str) -> None:
    added = {each["name"] for each in EVERYTHING[part]["extraEnv"]}
    own = {name for of in (EVERYTHING, EXTERNAL) for name in environment(workloads(render(of))[f"mint-{part}"])}
    names = sorted(own - added)
    with pytest.raises(HelmError) as refusal:
        render({part: {"extraEnv": [{"name": name, "value": "x"} for name in names]}})
    for index in range(len(names)):
        assert f"/{part}/extraEnv/{index}/name" in str(refusal.value), names[index]


@pytest.mark.parametrize("part", PUSHED["images"])
def test_no_image_of_others_runs_when_none_is_named(part: str) -> None:
    """The image `mint` on Docker Hub is not ours. The engines' image is passed to the operator, which starts them."""
    with pytest.raises(HelmError) as refusal:
        render({"images": {part: {"repository": ""}}})
    message = str(refusal.value)
    assert f"images.{part}.repository is not set: build MinT's two images with" in message
    assert f'"make images REPOSITORY=registry.example/mint TAG={APP_VERSION}"' in message, "which an empty tag means"
    for each, image in (("operator", "control"), ("gateway", "control"), ("engine", "engine")):
        assert re.search(rf"images\.{each}\.repository.* to registry\.example/mint/{image}\b", message)
    assert "--tag $(REPOSITORY)/$$target:$(TAG)" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("url", ["redis://host", "rediss://redis_1.example:6380/0", "redis://[fd00::1]:6379"])
def test_an_external_redis_is_named_by_host_port_and_database(url: str) -> None:
    variables = environment(workloads(render({"redis": {"external": {"url": url}}}))["mint-operator"])
    assert variables[settings.REDIS_URL] == url


DIGEST = "sha256:" + "0" * 64
IMAGES: list[Values] = [
    {},
    {"images": {"operator": {"repository": "registry.example/mint/control"}}},
    {"images": {"engine": {"repository": "registry.example/mint/engine"}}},
    {"images": {"engine": {"tag": "1.2", "pullPolicy": "Always"}}, "runtimeClassName": "gvisor"},
    {"images": {"engine": {"repository": "registry.example:5000/engine", "tag": DIGEST}}},
    {"imagePullSecrets": ["registry", "mirror"]},
]


@pytest.mark.parametrize("values", IMAGES, ids=repr)
def test_the_demo_loads_its_samples_by_the_image_that_engines_have(values: Values) -> None:
    variables, image = environment(workloads(render(values))["mint-operator"]), image_of(merged(PUSHED, values))
    assert image == {
        "image": variables[operator_settings.ENGINE_IMAGE],
        "pullPolicy": variables[operator_settings.ENGINE_PULL_POLICY],
        "pullSecrets": variables[operator_settings.ENGINE_PULL_SECRETS],
        "runtimeClassName": variables[operator_settings.ENGINE_RUNTIME_CLASS],
    }
