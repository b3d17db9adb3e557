"""The API server and the chart accept the YAML of the pages."""

import functools
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.apiserver import ROOT, ApiServer
from tests.chart.rendering import render
from tests.crds.admission import PLURALS, Admission, merged
from tests.crds.schemas import schema, walk
from tests.docs.pages import PAGES, blocks, name, spans

SAMPLES = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "crds" / "samples").glob("*.yaml")}
# The sample into which a part of a spec is merged, by the part's only field.
WHOLE = {"engine": SAMPLES["basemodel"], "tenants": SAMPLES["basemodel"], "train": SAMPLES["adapterwave-train"]}
# Where a GitOps tool's resource holds the chart's values in its spec.
GITOPS = {"Application": ("source", "helm", "valuesObject"), "HelmRelease": ("values",)}
VALUES = yaml.safe_load((ROOT / "charts" / "mint" / "values.yaml").read_text())


def written() -> Iterator[Any]:
    """Return every YAML document of the pages, named by its page and its kind or first field."""
    for page in PAGES:
        for block in blocks(page):
            if re.match(r"\w+:(\s|$)", block):
                for document in yaml.safe_load_all(block):
                    yield pytest.param(document, id=f"{name(page)}-{kind(document)}")


def kind(document: dict[str, Any]) -> str:
    return str(document.get("kind") or min(document))


DOCUMENTS = list(written())


@pytest.fixture(scope="module")
def admission(api_server: ApiServer) -> Admission:
    return Admission(api_server)


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if kind(each.values[0]) in {*WHOLE, *PLURALS}])
def test_the_api_server_accepts_resources_and_parts_of_specs(document: dict[str, Any], admission: Admission) -> None:
    if "kind" not in document:
        document = merged(WHOLE[kind(document)], {"spec": document})
    assert admission.refusal(document) == ""


@pytest.mark.parametrize("values", [each for each in DOCUMENTS if kind(each.values[0]) in VALUES])
def test_the_chart_takes_values(values: dict[str, Any]) -> None:
    assert render(values)


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if kind(each.values[0]) in GITOPS])
def test_the_chart_accepts_the_values_of_gitops_tools(document: dict[str, Any]) -> None:
    values = functools.reduce(operator.getitem, GITOPS[kind(document)], document["spec"])
    assert render(values)


def test_every_kind_of_document_is_tested() -> None:
    assert {kind(each.values[0]) for each in DOCUMENTS} == {
        *WHOLE,
        *PLURALS,
        *GITOPS,
        "gateway",
        "redis",
        "Certificate",
        "ValidatingAdmissionPolicy",  # see test_tenant_policy
        "ValidatingAdmissionPolicyBinding",
    }


@functools.cache
def fields() -> set[str]:
    """Return the paths of all fields of the custom resources and of the chart's values, each between two dots."""
    paths = {path for kind in ("BaseModel", "AdapterWave") for path, _ in walk(schema(kind))}
    return {re.sub(r"\[\]|\{\}", "", path) + "." for path in paths} | set(_keys(VALUES, ""))


def _keys(values: dict[str, Any], above: str) -> Iterator[str]:
    for key, value in values.items():
        yield f"{above}.{key}."
        if isinstance(value, dict):
            yield from _keys(value, f"{above}.{key}")


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "e2e"], ids=name)
def test_fields_in_the_text_exist(page: Path) -> None:
    firsts = {part for field in fields() for part in field.split(".") if part}
    for span in spans(page):
        if re.fullmatch(r"[a-z][A-Za-z]*(\.[a-z][A-Za-z]*)+", span) and span.partition(".")[0] in firsts:
            assert any(f".{span}." in field for field in fields()), span
