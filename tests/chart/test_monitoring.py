"""The chart's alerts and dashboard use only series that MinT's processes export, and the docs list all of them."""

import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from mint_gateway.metrics import Metrics
from mint_operator.observing.watch import STALLED_S
from tests.apiserver import ROOT
from tests.chart.rendering import (
    BARE,
    CHART,
    DEFAULTS,
    EVERYTHING,
    NAMESPACE,
    NAMESPACED,
    Object,
    alerts,
    found_by,
    monitors,
    of_kind,
    render,
)

SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
# Labels that Prometheus adds to every series, and to a histogram's buckets.
ADDED = {"namespace", "pod", "service", "le"}
WITH_METRICS = (
    "mint_operator.metrics",
    "mint_engine.metrics",
    "mint_engine.residency.metrics",
    "mint_engine.policies.training_metrics",
)


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Return every series that the operator, engines and gateways export, with its labels."""
    for name in WITH_METRICS:
        importlib.import_module(name)
    return dict(_series(REGISTRY)) | dict(_series(Metrics().registry))


def _series(registry: CollectorRegistry) -> Iterator[tuple[str, set[str]]]:
    for collector in list(registry._collector_to_names):
        if isinstance(collector, MetricWrapperBase) and collector._name.startswith("mint_"):
            for suffix in SUFFIXES[str(collector._type)]:
                yield collector._name + suffix, set(collector._labelnames)


def dashboards(objects: list[Object]) -> dict[str, Any]:
    """Return the releases' dashboards, by the names of the files that Grafana's sidecar writes."""
    found = of_kind(objects, "ConfigMap").items()
    files = [each["data"].items() for name, each in found if name.endswith("-dashboard")]
    return {file: json.loads(text) for every in files for file, text in every}


def dashboard(objects: list[Object]) -> Any:
    [(_, found)] = dashboards(objects).items()
    return found


def asked(objects: list[Object]) -> list[str]:
    """Return every expression of the alerts and of the dashboard."""
    panels = dashboard(objects)["panels"]
    return [each["expr"] for each in alerts(objects)] + [
        target["expr"] for panel in panels for target in panel["targets"]
    ]


@pytest.mark.parametrize("values", [EVERYTHING, EVERYTHING | NAMESPACED], ids=["everywhere", "namespaced"])
def test_alerts_and_dashboards_use_only_exported_series(values: Object, exported: dict[str, set[str]]) -> None:
    named = set()
    for text in asked(render(values)):
        for name, chosen in re.findall(r"\b(mint_\w+)(?:\{([^}]*)\})?", text):
            assert name in exported, text
            labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", chosen))
            assert labels <= exported[name] | ADDED, text
            named.add(name)
        known = set().union(*[exported[name] for name in re.findall(r"\b(mint_\w+)", text)])
        for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", text):
            assert {each.strip() for each in grouped.split(",")} <= known | ADDED, text
        assert all(text.count(one) == text.count(other) for one, other in ("()", "{}", "[]")), text
    assert {name.split("_")[1] for name in named} == {"operator", "engine", "gateway", "train"}


def test_the_docs_tell_of_every_metric_with_its_labels(exported: dict[str, set[str]]) -> None:
    documented = {}
    page = (ROOT / "docs" / "metrics.md").read_text()
    for name, histogram, labels in re.findall(r"^\| `(\w+)`(, a histogram)? \|(.*?)\|", page, re.MULTILINE):
        documented[name + "_bucket" * bool(histogram)] = set(re.findall(r"`(\w+)`", labels))
    assert documented == {name: labels for name, labels in exported.items() if not name.endswith(("_sum", "_count"))}


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    found = alerts(render(EVERYTHING))
    names = [each["alert"] for each in found]
    assert len(set(names)) == len(names)
    for each in found:
        assert each["labels"]["severity"] in {"warning", "critical"}
        assert each["annotations"]["summary"]
        assert len(each["annotations"]["description"]) > len(each["annotations"]["summary"])
        assert "{{" not in each["expr"]
    assert any(NAMESPACE in each["annotations"]["description"] for each in found)


def test_alerts_of_a_release_are_about_what_it_watches() -> None:
    for each in alerts(render(EVERYTHING | NAMESPACED)):
        chosen = re.findall(r"\bmint_\w+(\{[^}]*\})", each["expr"])
        assert chosen, each["alert"]
        for text in chosen:
            assert f'namespace="{NAMESPACE}"' in text or 'namespace=~"team-a|team-b"' in text


@pytest.mark.parametrize("kind", ["ClusterIP", "LoadBalancer"])
def test_alerts_on_a_releases_own_parts_ignore_other_releases(kind: str) -> None:
    values = {"gateway": {"service": {"type": kind}}, "metrics": EVERYTHING["metrics"]}
    objects, beside = render(values), render(values, release="second-mint")
    scraped = found_by(monitors(objects, "mint")[0], objects)
    named = set()
    for each in alerts(objects):
        for part, chosen in re.findall(r"\bmint_(operator|gateway)_\w+(?:\{([^}]*)\})?", each["expr"]):
            [service] = re.findall(r'service=~?"([^"]*)"', chosen)
            [found] = [name for name in scraped if re.fullmatch(service, name)]
            assert part in found
            assert not [name for name in of_kind(beside, "Service") if re.fullmatch(service, name)]
            named.add(found)
    assert named == scraped


def test_an_alert_says_that_no_gateway_runs_where_one_should() -> None:
    """All other alerts compare gateways' series, and cannot fire if no gateway exports any."""
    [away] = [each for each in alerts(render(EVERYTHING)) if each["alert"] == "MintGatewayAway"]
    selector = f'namespace="{NAMESPACE}", service=~"mint-gateway(-metrics)?"'
    assert away["expr"] == f"absent(mint_gateway_map_age_seconds{{{selector}}})"
    assert away["labels"]["severity"] == "critical"
    for replicas, said in ((0, False), (None, True)):
        told = alerts(render(EVERYTHING | {"gateway": {"replicas": replicas}}))
        assert ("MintGatewayAway" in {each["alert"] for each in told}) is said, "an autoscaler runs at least one"


def test_the_alert_on_a_stuck_operator_fires_although_its_liveness_probe_restarts_it() -> None:
    """A new process exports 0 until its first pass has ended, and nothing until it is up and leads again."""
    objects = render(EVERYTHING)
    [stuck] = [each for each in alerts(objects) if each["alert"] == "MintOperatorNotPlanning"]
    [container] = of_kind(objects, "Deployment")["mint-operator"]["spec"]["template"]["spec"]["containers"]
    probe = container["livenessProbe"]
    restarted_s = STALLED_S + probe["periodSeconds"] * probe["failureThreshold"]
    assert restarted_s < 120 + 300, "the alert's threshold and `for`"
    of = f'namespace="{NAMESPACE}", service="mint-operator"'
    last, led = "mint_operator_last_pass_timestamp_seconds", "mint_operator_leads"
    last, led = (f"max(max_over_time({each}{{{of}}}[5m]))" for each in (last, led))
    assert (stuck["expr"], stuck["for"]) == (f"time() - {last} > 120 and {led} == 1", "5m")


def test_alerts_on_bases_hold_for_each_base_alone() -> None:
    """Summed up, bases whose engines start one after another would look like one that never becomes ready."""
    found = {each["alert"]: each for each in alerts(render(EVERYTHING))}
    of = f'namespace="{NAMESPACE}", service="mint-operator"'
    base = f'sum by (base) (mint_operator_bases{{{of}, phase!~"Ready|Rolling"}})'
    desired, ready = (
        f'sum by (base) (mint_operator_engines{{{of}, state="{each}"}})' for each in ("desired", "ready")
    )
    assert found["MintBaseNotReady"]["expr"] == f"{base} > 0"
    assert found["MintEnginesNotReady"]["expr"] == f"{desired} - {ready} > 0"
    for alert in ("MintBaseNotReady", "MintEnginesNotReady"):
        assert "{{ $labels.base }}" in found[alert]["annotations"]["description"]


def test_alerts_on_requests_compare_those_that_clients_waited_for() -> None:
    """If one prompt of an HTTP request fails, its others end as cancelled, and may be a hundred."""
    found = {each["alert"]: each["expr"] for each in alerts(render(EVERYTHING))}
    of = f'mint_gateway_requests_total{{namespace="{NAMESPACE}", service=~"mint-gateway(-metrics)?", code'
    for alert, failed in (
        ("MintRequestsRefused", '="RESOURCE_EXHAUSTED"'),
        ("MintRequestsFail", '=~"INTERNAL|UNAVAILABLE|UNKNOWN"'),
    ):
        part, all_of_them = (f"sum(rate({of}{each}}}[5m]))" for each in (failed, '!="CANCELLED"'))
        assert found[alert] == f"{part} / {all_of_them} > 0.05"


def test_the_alert_on_failed_policies_ends_although_they_stay_failed() -> None:
    """Their wave may have ended all the same, and then stays for what its other policies have published."""
    [fail] = [each for each in alerts(render(EVERYTHING)) if each["alert"] == "MintPoliciesFail"]
    failed = f'mint_operator_policies{{namespace="{NAMESPACE}", service="mint-operator", stage="failed"}}'
    assert fail["expr"] == f"max({failed}) > min(min_over_time({failed}[1h]))", "which is the same for a new operator"


def test_every_panel_has_a_place_of_its_own() -> None:
    panels = dashboard(render(EVERYTHING))["panels"]
    assert len({(each["gridPos"]["x"], each["gridPos"]["y"]) for each in panels}) == len(panels)
    assert len({each["id"] for each in panels}) == len(panels)


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    for each in dashboard(render(EVERYTHING))["panels"]:
        assert each["description"].endswith("."), each["title"]
        unit = each["fieldConfig"]["defaults"]["unit"]
        for text in (target["expr"] for target in each["targets"]):
            if "histogram_quantile(" in text:
                assert ("_seconds_bucket" in text, unit) == (True, "s"), text
            elif "rate(" in text:
                assert unit == "reqps" or unit.endswith("/s"), text
            else:
                assert unit == "none", text


def test_pods_of_one_name_in_two_namespaces_are_told_apart() -> None:
    """Engines are called after their base, and two namespaces may each have one of that name."""
    for each in dashboard(render(EVERYTHING))["panels"]:
        for target in each["targets"]:
            assert ("{{pod}}" in target["legendFormat"]) is ("by (namespace, pod)" in target["expr"])
            assert "by (pod)" not in target["expr"]


def test_every_release_has_its_own_dashboard() -> None:
    longest = "x" * 53
    releases = [("mint", NAMESPACE), ("second", NAMESPACE), ("mint", "team-b"), (longest, "n" * 63)]
    found = [dashboards(render(EVERYTHING, "-n", namespace, release=name)) for name, namespace in releases]
    assert len({file for each in found for file in each}) == len(releases), "one would overwrite the other"
    shown = [panels for each in found for panels in each.values()]
    assert len({each["uid"] for each in shown}) == len({each["title"] for each in shown}) == len(releases)
    assert all(len(each["uid"]) <= 40 for each in shown), "Grafana takes no longer one"
    assert shown[0]["title"] == "MinT mint-system/mint"
    own = json.loads((CHART / "dashboards" / "mint.json").read_text())
    assert all(each | {"uid": own["uid"], "title": own["title"]} == own for each in shown)


def test_alerts_and_dashboards_have_their_labels_and_are_made_only_on_request() -> None:
    objects = render(EVERYTHING)
    assert of_kind(objects, "PrometheusRule")["mint"]["metadata"]["labels"]["release"] == "prometheus"
    about = of_kind(objects, "ConfigMap")["mint-dashboard"]["metadata"]
    assert (about["labels"]["grafana_dashboard"], about["labels"]["team"]) == ("1", "ml")
    assert about["annotations"] == {"grafana_folder": "MinT"}
    for values in (DEFAULTS, BARE):
        objects = render(values)
        assert not of_kind(objects, "PrometheusRule")
        assert "mint-dashboard" not in of_kind(objects, "ConfigMap")


def test_service_accounts_carry_the_annotations_of_cloud_roles() -> None:
    accounts = of_kind(render(EVERYTHING), "ServiceAccount")
    for part, role in (("operator", "reader"), ("gateway", "catalogs")):
        annotations = accounts[f"mint-{part}"]["metadata"]["annotations"]
        assert annotations == {"eks.amazonaws.com/role-arn": f"arn:aws:iam::1:role/{role}"}
    assert "annotations" not in of_kind(render(DEFAULTS), "ServiceAccount")["mint-operator"]["metadata"]
