"""What the operator's metrics show."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY

from mint_contracts.resources import BaseModelStatus, EngineCounts
from mint_operator import metrics
from mint_operator.planning.plan import Plan
from mint_operator.planning.snapshot import Snapshot
from tests.operator.stage import RELEASE


def test_failed_passes_are_counted_from_zero_so_that_an_alert_sees_the_first_one() -> None:
    code = "import mint_operator.metrics, prometheus_client as p; print(p.generate_latest().decode())"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert 'mint_operator_passes_total{outcome="failed"} 0.0' in shown


@pytest.fixture
def _without_bases() -> Iterator[None]:
    yield
    observed()


def observed(**phases: str) -> None:
    """Observe a pass with these bases and their phases; each wants three engines and has two."""
    counts = EngineCounts(desired=3, ready=2)
    statuses = {f"demo/{name}": BaseModelStatus(phase=phase, engines=counts) for name, phase in phases.items()}
    metrics.observe(Snapshot(0.0, RELEASE), Plan(base_statuses=statuses))


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"mint_operator_{name}", labels)


@pytest.mark.usefixtures("_without_bases")
def test_each_base_has_its_own_phase_and_engines_until_it_is_deleted() -> None:
    observed(one="Ready", other="Loading")
    assert [value("bases", base="demo/one", phase=phase) for phase in ("Ready", "Loading")] == [1, 0]
    assert [value("bases", base="demo/other", phase=phase) for phase in ("Ready", "Loading")] == [0, 1]
    assert [value("engines", base="demo/one", state=state) for state in ("desired", "ready")] == [3, 2]
    observed(other="Ready")
    assert (value("bases", base="demo/one", phase="Ready"), value("engines", base="demo/one", state="ready")) == (
        None,
    ) * 2
    assert (value("bases", base="demo/other", phase="Ready"), value("engines", base="demo/other", state="ready")) == (
        1,
        2,
    )
