"""The chart installs the CRDs, and uninstalling it leaves them."""

import pytest

from tests.chart.rendering import DEFAULTS, of_kind, render


def test_the_crds_are_installed_and_the_samples_are_not() -> None:
    with_crds = render(DEFAULTS, "--include-crds")
    assert set(of_kind(with_crds, "CustomResourceDefinition")) == {"basemodels.mint.dev", "adapterwaves.mint.dev"}
    assert of_kind(with_crds, "BaseModel", "AdapterWave") == {}


@pytest.mark.parametrize("name", ["basemodels.mint.dev", "adapterwaves.mint.dev"])
def test_no_tool_that_applies_the_crds_deletes_them_with_all_objects_of_their_kinds(name: str) -> None:
    crd = of_kind(render(DEFAULTS, "--include-crds"), "CustomResourceDefinition")[name]
    kept = {"helm.sh/resource-policy": "keep", "kustomize.toolkit.fluxcd.io/prune": "disabled"}
    assert kept.items() <= crd["metadata"]["annotations"].items()
