"""The objects that the chart makes, in each of its variants."""

import itertools
import re
from typing import Any

import pytest

from mint_contracts import settings
from mint_operator import settings as operator_settings
from tests.chart.rendering import (
    BARE,
    CHART,
    DEFAULTS,
    ENGINE_LABELS,
    EVERYTHING,
    KUBE_VERSION,
    NAMESPACED,
    PUSHED,
    VARIANTS,
    Object,
    Values,
    container,
    environment,
    helm,
    labels,
    matches,
    of_kind,
    pod,
    render,
    rules,
    workloads,
)

every_variant = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())


def owner(service: str) -> str:
    """Return the workload that a Service selects."""
    return service.removesuffix("-metrics")


@every_variant
def test_lint_is_clean(values: Values) -> None:
    output = helm("lint", "--strict", str(CHART), values=values | PUSHED)
    assert "0 chart(s) failed" in output
    assert "[WARNING]" not in output


def test_the_chart_needs_nothing_outside_its_folder() -> None:
    """Flux's source controller drops symbolic links from a Git checkout: the CRDs would be missing."""
    assert [path for path in CHART.rglob("*") if path.is_symlink()] == []


@every_variant
def test_every_pod_is_confined(values: Values) -> None:
    for workload in workloads(render(values)).values():
        assert pod(workload)["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert container(workload)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "/mint/tmp" in {mount["mountPath"] for mount in container(workload)["volumeMounts"]}


@every_variant
def test_only_the_operator_may_speak_to_the_api_server(values: Values) -> None:
    objects = render(values)
    accounts = of_kind(objects, "ServiceAccount")
    for name, workload in workloads(objects).items():
        own = accounts[pod(workload)["serviceAccountName"]]
        with_token = pod(workload).get("automountServiceAccountToken", own.get("automountServiceAccountToken", True))
        assert with_token == (name == "mint-operator")


@every_variant
def test_every_container_is_probed_and_bounded(values: Values) -> None:
    for workload in workloads(render(values)).values():
        own = container(workload)
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= own.keys()
        assert {"requests", "limits"} == own["resources"].keys()
        assert "memory" in own["resources"]["limits"]


@every_variant
def test_every_mount_has_its_volume(values: Values) -> None:
    for workload in workloads(render(values)).values():
        volumes = {volume["name"] for volume in pod(workload)["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        assert {mount["name"] for mount in container(workload)["volumeMounts"]} == volumes


@every_variant
def test_selectors_find_their_own_pods_alone(values: Values) -> None:
    objects = render(values)
    pods = {name: labels(workload) for name, workload in workloads(objects).items()}
    for name, workload in workloads(objects).items():
        assert [other for other, given in pods.items() if matches(workload["spec"]["selector"], given)] == [name]
    for name, service in of_kind(objects, "Service").items():
        assert [other for other, given in pods.items() if matches(service["spec"]["selector"], given)] == [
            owner(name)
        ]
    for name, budget in of_kind(objects, "PodDisruptionBudget").items():
        assert [other for other, given in pods.items() if matches(budget["spec"]["selector"], given)] == [name]


def test_gateways_that_are_not_ready_do_not_hold_up_a_drain() -> None:
    [budget] = of_kind(render(DEFAULTS), "PodDisruptionBudget").values()
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@every_variant
def test_services_and_policies_name_ports_that_exist(values: Values) -> None:
    objects = render(values)
    ports = {name: {port["name"] for port in container(each)["ports"]} for name, each in workloads(objects).items()}
    for name, service in of_kind(objects, "Service").items():
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports[owner(name)]
    for name, policy in of_kind(objects, "NetworkPolicy").items():
        assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} <= ports[name]


def test_ports_are_those_of_the_contracts() -> None:
    gateway = of_kind(render(DEFAULTS), "Service")["mint-gateway"]
    assert {(port["name"], port["port"]) for port in gateway["spec"]["ports"]} == {
        ("grpc", settings.GATEWAY_PORT),
        ("http", settings.GATEWAY_HTTP_PORT),
        ("metrics", settings.METRICS_PORT),
    }
    assert gateway["spec"]["ports"][0]["appProtocol"] == "grpc"


def numbers(node: Any) -> list[int]:
    """Yield every integer in an object."""
    if isinstance(node, dict):
        return [found for child in node.values() for found in numbers(child)]
    if isinstance(node, list):
        return [found for child in node for found in numbers(child)]
    return [node] if isinstance(node, int) and not isinstance(node, bool) else []


@pytest.mark.parametrize("external", [False, True])
def test_names_that_are_all_digits_stay_names(external: bool) -> None:
    """For example of a namespace that is named by a commit's digest."""
    names = (str(each) for each in itertools.count(7_000_001))
    common = {"priorityClassName": next(names), "nodeSelector": {"pool": next(names)}}
    values = {
        "watchNamespaces": [next(names)],
        "imagePullSecrets": [next(names)],
        "runtimeClassName": next(names),
        "operator": {"manifests": {"existingSecret": next(names)}, **common},
        "gateway": {
            "tls": {"secretName": next(names)},
            "keys": {"secretName": next(names)},
            "catalog": {"existingSecret": next(names), "claims": [next(names)]},
        },
        "redis": {"existingSecret": next(names), "persistence": {"storageClassName": next(names)}},
        "metrics": EVERYTHING["metrics"],
    }
    if external:
        url = {"url": "rediss://redis", "existingSecret": next(names), "caSecret": next(names)}
        values["redis"] = {"external": url}
    objects = render(values, "-n", next(names), release=next(names))
    assert [each for each in numbers(objects) if each > 7_000_000] == []


def test_dashboards_may_be_labelled_as_ones_own_grafana_looks_for_them() -> None:
    values = {"metrics": {"dashboard": {"enabled": True, "labels": {"grafana_dashboard": "true"}}}}
    assert of_kind(render(values), "ConfigMap")["mint-dashboard"]["metadata"]["labels"]["grafana_dashboard"] == "true"
    text = helm("template", "mint", str(CHART), "--kube-version", KUBE_VERSION, values=values | PUSHED)
    assert text.count("grafana_dashboard:") == 1


def test_the_operator_is_told_what_engines_need() -> None:
    variables = environment(workloads(render(EVERYTHING | NAMESPACED))["mint-operator"])
    assert variables["MINT_NAMESPACE"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}
    assert variables["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert variables["MINT_WATCH_NAMESPACES"] == "team-a,team-b"
    assert variables["MINT_ENGINE_IMAGE"] == "mint/engine:0.1.0"
    assert variables["MINT_ENGINE_PULL_POLICY"] == "IfNotPresent"
    assert variables["MINT_ENGINE_RUNTIME_CLASS"] == "mint-host"
    assert variables["MINT_ENGINE_PULL_SECRETS"] == "registry"
    assert variables[operator_settings.ENGINE_CA_BUNDLE] == "corporate"
    assert variables[operator_settings.ENGINE_CA_BUNDLE_KEY] == "bundle.pem"


def test_the_number_of_gateways_can_be_left_to_an_autoscaler() -> None:
    """A replica count that is written back at each sync would undo the autoscaler's decisions."""
    assert "replicas" not in workloads(render({"gateway": {"replicas": None}}))["mint-gateway"]["spec"]
    assert workloads(render({"gateway": {"replicas": 0}}))["mint-gateway"]["spec"]["replicas"] == 0


def test_the_image_of_redis_names_its_registry() -> None:
    """CRI-O does not guess a registry, and registry policies compare names as they are written."""
    assert container(workloads(render(DEFAULTS))["mint-redis"])["image"].startswith("docker.io/library/redis:")


@every_variant
def test_services_of_the_namespace_do_not_become_environment_variables(values: Values) -> None:
    """A Service named mint-metrics would set MINT_METRICS_PORT to a value that is not a port."""
    for workload in workloads(render(values)).values():
        assert pod(workload)["enableServiceLinks"] is False


def test_a_tag_may_be_a_digest() -> None:
    digest = "sha256:" + "a" * 64
    image = container(workloads(render({"images": {"gateway": {"tag": digest}}}))["mint-gateway"])["image"]
    assert image == f"mint/control@{digest}"


def test_names_may_be_chosen() -> None:
    """Flux names a release by its namespace and name."""
    objects = render({"fullnameOverride": "lora"}, release="mint-system-mint")
    assert sorted(workloads(objects)) == ["lora-gateway", "lora-operator", "lora-redis"]
    assert environment(workloads(objects)["lora-operator"])["MINT_LEASE"] == "lora-operator"
    assert "mint-system-mint-" not in repr([each["metadata"]["name"] for each in objects])


def test_names_carry_the_release() -> None:
    objects = render(DEFAULTS, release="other")
    assert "other-mint-gateway" in workloads(objects)
    assert "redis://other-mint-redis." in repr(objects)


@pytest.mark.parametrize(
    ("release", "name"), [("1mint", "mint-1mint"), ("7", "mint-7"), ("v1.mint", "v1-mint"), ("v1.2", "v1-2-mint")]
)
def test_service_names_are_valid_for_every_release_name(release: str, name: str) -> None:
    services = of_kind(render(DEFAULTS, release=release), "Service")
    assert services.keys() == {f"{name}-{part}" for part in ("operator", "gateway", "redis")}
    assert all(re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", service) for service in services)


@pytest.mark.parametrize(("release", "lease"), [("mint", "mint-operator"), ("second", "second-mint-operator")])
def test_each_release_has_its_own_leader_lease(release: str, lease: str) -> None:
    objects = render(DEFAULTS, release=release)
    variables = environment(workloads(objects)[lease])
    assert variables[operator_settings.LEASE] == lease
    named = {names for _, resource, verb, names in rules(objects) if (resource, verb) == ("leases", "update")}
    assert named == {(lease,)}


def test_only_operator_gateways_and_engines_reach_redis() -> None:
    objects = render(DEFAULTS)
    policy = of_kind(objects, "NetworkPolicy")["mint-redis"]["spec"]
    assert "Egress" in policy["policyTypes"]
    assert "egress" not in policy, "an empty list would differ from what the API server stores at each apply"
    (ingress,) = policy["ingress"]
    given = {name: labels(each) for name, each in workloads(objects).items()} | {"engine": ENGINE_LABELS}
    given["stranger"] = {"app": "stranger"}
    allowed = {
        name for name, each in given.items() if any(matches(peer["podSelector"], each) for peer in ingress["from"])
    }
    assert allowed == {"mint-operator", "mint-gateway", "engine"}


def test_claims_are_written_as_the_api_server_stores_them() -> None:
    """Argo CD compares them literally, and would never be in sync otherwise."""
    [claim] = workloads(render(DEFAULTS))["mint-redis"]["spec"]["volumeClaimTemplates"]
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")


@every_variant
def test_the_operator_is_told_which_pods_are_gateways(values: Values) -> None:
    objects = render(values)
    variables = environment(workloads(objects)["mint-operator"])
    if values.get("networkPolicy") == {"enabled": False}:
        assert operator_settings.GATEWAY_LABELS not in variables
        return
    given = dict(pair.split("=") for pair in variables[operator_settings.GATEWAY_LABELS].split(","))
    assert [name for name, each in workloads(objects).items() if matches(given, labels(each))] == ["mint-gateway"]


def test_policies_can_be_left_out() -> None:
    assert of_kind(render(BARE), "NetworkPolicy") == {}
    assert "networkpolicies" not in {resource for _, resource, _, _ in rules(render(BARE))}


def test_gateways_roll_without_a_gap_and_spread() -> None:
    gateway = workloads(render(EVERYTHING))["mint-gateway"]
    assert gateway["spec"]["replicas"] == 3
    assert gateway["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    (spread,) = pod(gateway)["topologySpreadConstraints"]
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert matches(spread["labelSelector"], labels(gateway))


@pytest.mark.parametrize("replicas", [1, None], ids=["one", "as many as an autoscaler wants"])
def test_a_single_gateway_releases_its_claims_before_its_successor_starts(replicas: int | None) -> None:
    with_claims: Values = {"gateway": {"replicas": replicas, "catalog": {"claims": ["catalog"]}}}
    gateway = workloads(render(with_claims))["mint-gateway"]
    assert gateway["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}


def test_one_operator_at_a_time() -> None:
    operator: Object = workloads(render(DEFAULTS))["mint-operator"]
    assert operator["spec"]["replicas"] == 1
    assert operator["spec"]["strategy"] == {"type": "Recreate"}


def test_gateways_get_what_their_catalogs_manifests_need() -> None:
    gateway = workloads(render(EVERYTHING))["mint-gateway"]
    assert container(gateway)["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert {"name": "claim-0", "mountPath": "/mint/pvc/catalog"} in container(gateway)["volumeMounts"]
    assert {"name": "claim-0", "persistentVolumeClaim": {"claimName": "catalog"}} in pod(gateway)["volumes"]
    assert "envFrom" not in container(workloads(render(DEFAULTS))["mint-gateway"])


def test_the_operator_gets_what_waves_manifests_need() -> None:
    operator = container(workloads(render(EVERYTHING))["mint-operator"])
    assert operator["envFrom"] == [{"secretRef": {"name": "s3-reader"}}]
    assert "envFrom" not in container(workloads(render(DEFAULTS))["mint-operator"])
