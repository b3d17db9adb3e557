"""The number of gateways is left to whoever scales them, upgrade after upgrade."""

from tests.apiserver import ApiServer
from tests.chart.rendering import CHART, PUSHED, helm, render, workloads
from tests.crds.admission import merged


def test_no_number_is_written_unless_one_is_given() -> None:
    assert "replicas" not in workloads(render(PUSHED))["mint-gateway"]["spec"]


def test_a_number_that_is_given_up_stays_with_whoever_scales(api_server: ApiServer) -> None:
    """Helm takes a null over an earlier number for the chart's default, which must not be a number either."""
    namespace = api_server.namespace("gateway-replicas")
    values = merged(PUSHED, {"watchNamespaces": [namespace]})

    def replicas_after(*args: str) -> int:
        common = ["scaled", str(CHART), "-n", namespace, "--kubeconfig", str(api_server.kubeconfig), "--skip-crds"]
        helm("upgrade", "--install", "--reset-then-reuse-values", *common, *args, values=values)
        path = "jsonpath={.spec.replicas}"
        return int(api_server.kubectl("get", "deployment", "scaled-mint-gateway", "-n", namespace, "-o", path))

    assert replicas_after("--set", "gateway.replicas=3") == 3
    assert replicas_after("--set", "gateway.replicas=null") == 1
    api_server.kubectl("scale", "deployment", "scaled-mint-gateway", "-n", namespace, "--replicas=5")
    assert replicas_after() == 5
