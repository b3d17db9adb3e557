"""The chart's gateway: TLS, keys, scopes and metrics apart, and the time that it has to end."""

import json
from pathlib import Path

import pytest

from mint_contracts import settings
from mint_gateway.security.mounted import files_of
from mint_gateway.security.scope import EVERYTHING as EVERYTHING_OPEN
from mint_gateway.security.scope import Scope
from mint_gateway.security.scopes import SCOPES_FILE, read_scopes
from tests.chart.rendering import (
    DEFAULTS,
    container,
    of_kind,
    pod,
    render,
    workloads,
)


@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_metrics_without_a_key_are_not_exposed_outside_the_cluster(kind: str) -> None:
    services = of_kind(render({"gateway": {"service": {"type": kind}}}), "Service")
    public, own = services["mint-gateway"], services["mint-gateway-metrics"]
    assert (public["spec"]["type"], own["spec"]["clusterIP"]) == (kind, "None")
    assert [port["name"] for port in public["spec"]["ports"]] == ["grpc", "http"]
    assert [(port["name"], port["port"]) for port in own["spec"]["ports"]] == [("metrics", settings.METRICS_PORT)]
    assert own["metadata"]["labels"] == public["metadata"]["labels"], "by which ServiceMonitors find it"
    assert "mint-gateway-metrics" not in of_kind(render(DEFAULTS), "Service")


def test_with_tls_a_secret_is_mounted_and_ports_and_probes_use_tls() -> None:
    objects = render({"gateway": {"tls": {"secretName": "gateway-tls"}}})
    ports = of_kind(objects, "Service")["mint-gateway"]["spec"]["ports"]
    assert [(port["name"], port["port"], port.get("appProtocol")) for port in ports] == [
        ("grpcs", settings.GATEWAY_PORT, "https"),
        ("https", settings.GATEWAY_HTTP_PORT, "https"),
        ("metrics", settings.METRICS_PORT, None),
    ]
    gateway = workloads(objects)["mint-gateway"]
    own = container(gateway)
    assert own["args"] == ["--tls=/etc/mint/tls"]
    assert {"name": "tls", "mountPath": "/etc/mint/tls", "readOnly": True} in own["volumeMounts"]
    [volume] = [each for each in pod(gateway)["volumes"] if each["name"] == "tls"]
    assert volume["secret"] == {"secretName": "gateway-tls", "defaultMode": 0o440}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert own[probe]["httpGet"]["scheme"] == "HTTPS"
        assert "grpc" not in own[probe]


def test_keys_are_mounted_and_none_is_in_an_environment() -> None:
    gateway = workloads(render({"gateway": {"keys": {"secretName": "gateway-keys"}}}))["mint-gateway"]
    assert container(gateway)["args"] == ["--keys=/etc/mint/keys"]
    assert {"name": "keys", "mountPath": "/etc/mint/keys", "readOnly": True} in container(gateway)["volumeMounts"]
    [volume] = [each for each in pod(gateway)["volumes"] if each["name"] == "keys"]
    assert volume["secret"] == {"secretName": "gateway-keys", "defaultMode": 0o440}
    assert "gateway-keys" not in repr(container(gateway)["env"])
    assert container(gateway)["readinessProbe"]["httpGet"]["path"] == "/health", "which asks for no key"


def test_scopes_lie_in_a_file_that_the_gateway_reads_as_it_changes(tmp_path: Path) -> None:
    scopes = {"team-a": {"adapters": ["acme/"], "namespaces": ["team-a", "models"]}, "team-b": {"adapters": []}}
    objects = render({"gateway": {"keys": {"secretName": "gateway-keys", "scopes": scopes}}}, release="other")
    [config] = [each for name, each in of_kind(objects, "ConfigMap").items() if name == "other-mint-gateway-scopes"]
    assert json.loads(config["data"]["scopes.json"]) == scopes
    gateway = workloads(objects)["other-mint-gateway"]
    assert container(gateway)["args"] == ["--keys=/etc/mint/keys", "--scopes=/etc/mint/scopes"]
    mount = {"name": "scopes", "mountPath": "/etc/mint/scopes", "readOnly": True}
    assert mount in container(gateway)["volumeMounts"], "a whole folder: a single file would never change"
    [volume] = [each for each in pod(gateway)["volumes"] if each["name"] == "scopes"]
    assert volume["configMap"] == {"name": config["metadata"]["name"]}
    (tmp_path / SCOPES_FILE).write_text(config["data"]["scopes.json"])
    read = read_scopes(tmp_path, files_of(tmp_path))
    assert read.of("team-a") == Scope(("acme/",), frozenset({"team-a", "models"}))
    assert (read.of("team-b"), read.of("somebody")) == (Scope(()), EVERYTHING_OPEN)


def test_without_scopes_nothing_is_rendered_for_them() -> None:
    assert "scopes" not in repr(render({"gateway": {"keys": {"secretName": "gateway-keys"}}}))


def test_a_gateway_with_a_longer_grace_drains_for_longer() -> None:
    for values in (DEFAULTS, {"gateway": {"terminationGracePeriodSeconds": None}}):  # absent with --reuse-values
        plain = workloads(render(values))["mint-gateway"]
        assert pod(plain)["terminationGracePeriodSeconds"] == 45
        assert "args" not in container(plain), "its own drain fits in that"
    longer = workloads(render({"gateway": {"terminationGracePeriodSeconds": 600}}))["mint-gateway"]
    assert pod(longer)["terminationGracePeriodSeconds"] == 600
    assert container(longer)["args"] == [f"--drain-seconds={settings.DRAIN_S + 600 - 45}"]


def test_without_a_secret_the_gateway_speaks_plain_text() -> None:
    gateway = workloads(render(DEFAULTS))["mint-gateway"]
    assert "args" not in container(gateway)
    assert [
        port["appProtocol"] for port in of_kind(render(DEFAULTS), "Service")["mint-gateway"]["spec"]["ports"][:2]
    ] == [
        "grpc",
        "http",
    ]
