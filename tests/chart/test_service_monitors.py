"""The Services that Prometheus scrapes for the chart: those of the release, each once."""

from tests.chart.rendering import (
    ENGINE_LABELS,
    EVERYTHING,
    NAMESPACE,
    NAMESPACED,
    found_by,
    matches,
    monitors,
    render,
)


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


def test_no_release_scrapes_the_parts_of_another() -> None:
    others = render(EVERYTHING, release="second")
    for each in monitors(render(EVERYTHING), "mint"):
        assert found_by(each, others) == set()
    own, _ = monitors(others, "second-mint")
    assert found_by(own, others) == {"second-mint-operator", "second-mint-gateway-metrics"}
