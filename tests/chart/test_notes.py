"""What helm prints after an installation, and what alerts say, are commands that work on that release."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from mint_gateway import cli
from mint_operator import settings as operator_settings
from tests.apiserver import ROOT
from tests.chart.rendering import (
    CHART,
    DEFAULTS,
    EVERYTHING,
    KUBE_VERSION,
    NAMESPACE,
    NAMESPACED,
    PUSHED,
    VARIANTS,
    Values,
    alerts,
    environment,
    helm,
    of_kind,
    render,
    workloads,
)
from tests.crds.admission import merged

# `helm template` renders no notes, but a template may include them.
INCLUDING = 'data: {notes: {{ include (print $.Template.BasePath "/NOTES.txt") . | toJson }}}\n'


def notes(values: Values, folder: Path) -> str:
    """The notes of an installation with these values."""
    chart = folder / "chart"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "notes.yaml").write_text(INCLUDING)
    command = ("template", "mint", str(chart), "-n", NAMESPACE, "--kube-version", KUBE_VERSION)
    text = helm(*command, "-s", "templates/notes.yaml", values=merged(PUSHED, values))
    return str(yaml.safe_load(text)["data"]["notes"])


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_the_commands_are_about_what_was_installed(values: Values, tmp_path: Path) -> None:
    text = notes(values, tmp_path)
    assert "{{" not in text
    asked = [line for line in text.splitlines() if re.match(r" +(\w+=\S+ )?mint ", line)]
    assert asked
    for line in asked:
        cli.parser().parse_args([word for word in shlex.split(line) if "=" not in word][1:])
    services = of_kind(render(values), "Service")
    [(namespace, service, port)] = re.findall(r"kubectl -n (\S+) port-forward service/(\S+) (\d+)", text)
    assert namespace == NAMESPACE
    assert int(port) in {each["port"] for each in services[service]["spec"]["ports"]}
    for path in re.findall(r"\b(?:docs|crds)/[\w/.-]+\w", text):
        assert (ROOT / path).exists(), path


def test_they_follow_the_values(tmp_path: Path) -> None:
    texts = {}
    for name, values in {"plain": DEFAULTS, "secured": EVERYTHING, "namespaced": NAMESPACED}.items():
        texts[name] = notes(values, tmp_path / name)
    assert "kubectl -n default apply" in texts["plain"]
    assert "kubectl -n team-a apply" in texts["namespaced"], "the first of those that it watches"
    assert "MINT_API_KEY=KEY mint ask --ca" in texts["secured"]
    assert "MINT_API_KEY" not in texts["plain"]
    assert "https://HOST:8480/v1" in texts["secured"]
    assert "http://HOST:8480/v1" in texts["plain"]


def test_commands_of_alerts_are_such_as_mint_takes() -> None:
    told = " ".join(each["annotations"]["description"] for each in alerts(render(EVERYTHING)))
    found = re.findall(r"\bmint ((?:[a-z]+ )+(?:-n NAMESPACE NAME)?)", told)
    assert found
    for words in found:
        cli.parser().parse_args(words.split())


def test_the_lease_that_uninstalling_leaves_is_among_what_the_readme_deletes() -> None:
    """Helm does not know it: a Lease in the chart could not be installed over one that an operator has created."""
    lease = environment(workloads(render(DEFAULTS))["mint-operator"])[operator_settings.LEASE]
    assert of_kind(render(EVERYTHING), "Lease") == {}
    page = (ROOT / "charts" / "mint" / "README.md").read_text()
    assert re.search(rf"^    kubectl delete -n mint-system secret/mint-redis .* lease/{lease} ", page, re.MULTILINE)
