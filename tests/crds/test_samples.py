"""crds/samples/ is what a newcomer applies first, so it must be accepted as it is."""

import yaml

from e2e.samples.catalog import BASE_NAME, TRAINED
from tests.apiserver import ROOT
from tests.crds.admission import Admission

SAMPLES = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "crds" / "samples").glob("*.yaml")}


def test_all_samples_are_accepted(admission: Admission) -> None:
    refusals = {name: admission.refusal(each) for name, each in SAMPLES.items()}
    assert refusals == dict.fromkeys(["adapterwave", "adapterwave-selector", "adapterwave-train", "basemodel"], "")


def test_the_waves_are_of_the_base_and_fit_its_slots() -> None:
    training, wave, base = SAMPLES["adapterwave-train"], SAMPLES["adapterwave"], SAMPLES["basemodel"]
    for each in (training, wave, SAMPLES["adapterwave-selector"]):
        assert each["spec"]["baseModelRef"]["name"] == base["metadata"]["name"]
        assert each["spec"]["serve"]["replicas"] <= base["spec"]["engine"]["replicas"]["max"]
    adapters = len(wave["spec"]["adapters"]["names"]) + len(training["spec"]["train"]["policies"]["list"])
    assert adapters <= base["spec"]["adapters"]["deviceSlots"]
    assert training["spec"]["train"]["policies"]["template"]["rank"] <= base["spec"]["adapters"]["maxRank"]
    assert "training" in base["spec"]


def test_the_samples_name_what_the_demo_prepares() -> None:
    wave, base = SAMPLES["adapterwave"], SAMPLES["basemodel"]
    assert wave["spec"]["adapters"]["names"] == [adapter.name for adapter in TRAINED]
    assert max(adapter.rank for adapter in TRAINED) <= base["spec"]["adapters"]["maxRank"]
    assert base["spec"]["adapters"]["baseNames"] == [BASE_NAME]
