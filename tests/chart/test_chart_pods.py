"""What the pods of the chart have in common, and what users may add to them."""

import pytest

from mint_operator.planning.podspec import BUNDLE_VARIABLES
from tests.chart.rendering import (
    DEFAULTS,
    EVERYTHING,
    Values,
    container,
    environment,
    labels,
    pod,
    render,
    workloads,
)


@pytest.mark.parametrize("part", ["operator", "gateway", "redis"])
def test_runtime_class_and_pull_secrets_reach_every_pod(part: str) -> None:
    spec = pod(workloads(render(EVERYTHING))[f"mint-{part}"])
    assert spec["runtimeClassName"] == "mint-host"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]


@pytest.mark.parametrize("part", ["operator", "gateway", "redis"])
def test_users_can_add_to_pods_and_replace_nothing(part: str) -> None:
    wishes = {"podLabels": {"team": "ml"}, "podAnnotations": {"a": "b"}}
    affinity: Values = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}
    plain = workloads(render(DEFAULTS))[f"mint-{part}"]
    workload = workloads(render({part: wishes | {"affinity": affinity}}))[f"mint-{part}"]
    assert labels(workload) == labels(plain) | {"team": "ml"}
    assert workload["spec"]["template"]["metadata"]["annotations"]["a"] == "b"
    assert pod(workload)["affinity"] == affinity
    assert "affinity" not in pod(plain)


@pytest.mark.parametrize("part", ["operator", "gateway"])
def test_variables_may_be_added_for_example_of_a_proxy(part: str) -> None:
    key = {"secretKeyRef": {"name": "proxy", "key": "url"}}
    added = [{"name": "NO_PROXY", "value": "10.0.0.0/8,.svc"}, {"name": "HTTPS_PROXY", "valueFrom": key}]
    variables = environment(workloads(render({part: {"extraEnv": added}}))[f"mint-{part}"])
    assert (variables["NO_PROXY"], variables["HTTPS_PROXY"]) == ("10.0.0.0/8,.svc", key)


@pytest.mark.parametrize("part", ["operator", "gateway"])
def test_the_users_cas_are_where_storage_libraries_look_for_them(part: str) -> None:
    workload = workloads(render(EVERYTHING))[f"mint-{part}"]
    assert {environment(workload)[name] for name in BUNDLE_VARIABLES} == {"/etc/mint/ca/ca.crt"}
    items = [{"key": "bundle.pem", "path": "ca.crt"}]
    assert {"name": "ca-bundle", "configMap": {"name": "corporate", "items": items}} in pod(workload)["volumes"]
    mount = {"name": "ca-bundle", "mountPath": "/etc/mint/ca", "readOnly": True}
    assert mount in container(workload)["volumeMounts"]
