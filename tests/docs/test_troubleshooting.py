"""docs/troubleshooting.md tells of every reason, error, phase, condition and alert that there is, and of no other."""

import ast
import re
from collections.abc import Iterator

import grpc
import pytest

from mint_contracts import errors
from mint_contracts.records import EXPIRED
from mint_operator.planning import conditions
from mint_operator.pruning import CRDS_OUTDATED
from tests.apiserver import ROOT
from tests.chart.rendering import EVERYTHING, alerts, render
from tests.docs.pages import parts, rows

PARTS = parts((ROOT / "docs" / "troubleshooting.md").read_text())
# Constants that are types of conditions, and no reasons.
TYPES = {conditions.COMPLETE, conditions.RECONCILING, conditions.STALLED}
# Calls of the operator that take a reason, and where among their arguments.
TAKE = {"Refusal": 0, "Failure": 0, "failure": 0, "Finding": 2}


def plain(part: str) -> list[list[str]]:
    """The rows of a part's table, without the backticks of their first cells."""
    return [[first.replace("`", ""), *rest] for first, *rest in rows(PARTS[part])]


def firsts(part: str) -> list[str]:
    return [name for first, *_ in plain(part) for name in first.split(", ")]


def every_error(of: type[errors.MintError]) -> Iterator[type[errors.MintError]]:
    for child in of.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from every_error(child)


def literal_reasons() -> Iterator[str]:
    """Reasons that the operator's code spells out, also as the last choice of an `or`."""
    for path in (ROOT / "operator").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and name in TAKE:
                given = [each.value for each in node.keywords if each.arg == "reason"] + node.args[TAKE[name] :][:1]
                for each in given:
                    for value in each.values if isinstance(each, ast.BoolOp) else [each]:
                        if isinstance(value, ast.Constant):
                            yield str(value.value)


def test_every_reason_of_the_operator_is_explained_and_no_other() -> None:
    own = {text for name, text in vars(conditions).items() if name.isupper() and isinstance(text, str)}
    told = set(firsts("Of BaseModels")) | set(firsts("Of AdapterWaves"))
    assert told == {each for each in own if re.fullmatch(r"[A-Z][A-Za-z]+", each)} - TYPES | {EXPIRED}
    everything = told | set(firsts("Of pods")) | set(firsts("Errors"))
    found = set(literal_reasons())
    assert {"BaseModelNotFound", "PodTrouble", "MapUnavailable"} <= found <= everything
    assert f"`{CRDS_OUTDATED}`" in PARTS["Events"]


def test_every_error_is_explained_with_its_statuses() -> None:
    known = {each.__name__: each for each in every_error(errors.MintError)}
    told = {name: cells for name, *cells in plain("Errors")}
    assert told.keys() == known.keys()
    for name, (http, status, meaning, todo) in told.items():
        kind = known[name]
        assert (int(http), grpc.StatusCode[status]) == (kind.http_status, kind.grpc_status), name
        assert meaning.startswith("temporary") is not kind.terminal, name
        assert todo, name


@pytest.mark.parametrize("part", ["Phases", "Conditions"])
def test_phases_and_conditions_are_those_that_statuses_can_have(part: str) -> None:
    crds = " ".join((ROOT / "crds" / f"mint.dev_{kind}.yaml").read_text() for kind in ("basemodels", "adapterwaves"))
    source = " ".join(path.read_text() for path in (ROOT / "operator").rglob("*.py")) + f'"{EXPIRED}"'
    for name in firsts(part):
        assert re.search(rf"\b{name}\b", crds), name
        assert f'"{name}"' in source, name


def test_every_alert_is_explained_with_its_severity() -> None:
    found = {each["alert"]: each["labels"]["severity"] for each in alerts(render(EVERYTHING))}
    assert {name: severity for name, severity, _ in plain("Alerts")} == found
