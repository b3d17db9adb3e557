"""Which Services the chart has Prometheus scrape: those of the release, each once."""

from tests.chart.rendering import ENGINE_LABELS, EVERYTHING, NAMESPACE, NAMESPACED, Object, matches, of_kind, render


def test_service_monitors_find_operator_gateways_and_engines() -> None:
    objects = render(EVERYTHING)
    own, engines = monitors(objects, "mint")
    assert own["metadata"]["labels"]["release"] == engines["metadata"]["labels"]["release"] == "prometheus"
    assert own["spec"]["namespaceSelector"] == {"matchNames": [NAMESPACE]}
    assert engines["spec"]["namespaceSelector"] == {"any": True}
    assert found_by(own, objects) == {"mint-operator", "mint-gateway-metrics"}
    assert found_by(engines, objects) == set()
    assert matches(engines["spec"]["selector"], ENGINE_LABELS)
    assert not matches(own["spec"]["selector"], ENGINE_LABELS)
    own, engines = monitors(render(EVERYTHING | NAMESPACED), "mint")
    assert own["spec"]["namespaceSelector"] == {"matchNames": [NAMESPACE]}
    assert engines["spec"]["namespaceSelector"] == {"matchNames": ["team-a", "team-b"]}


def test_no_release_has_the_parts_of_another_scraped_a_second_time() -> None:
    others = render(EVERYTHING, release="second")
    for each in monitors(render(EVERYTHING), "mint"):
        assert found_by(each, others) == set()
    own, _ = monitors(others, "second-mint")
    assert found_by(own, others) == {"second-mint-operator", "second-mint-gateway-metrics"}


def monitors(objects: list[Object], name: str) -> tuple[Object, Object]:
    """The ServiceMonitors of a release's own parts and of its engines."""
    found = of_kind(objects, "ServiceMonitor")
    assert found.keys() == {name, f"{name}-engines"}
    return found[name], found[f"{name}-engines"]


def found_by(monitor: Object, objects: list[Object]) -> set[str]:
    """The Services that it has scraped."""
    [port] = [each["port"] for each in monitor["spec"]["endpoints"]]
    return {
        name
        for name, each in of_kind(objects, "Service").items()
        if matches(monitor["spec"]["selector"], each["metadata"]["labels"])
        and port in {given["name"] for given in each["spec"]["ports"]}
    }
