"""What users of the catalog of samples may rely on."""

import json
from pathlib import Path

import yaml

from e2e.samples import GOOD, TRAINED, questions
from e2e.samples.catalog import ALL_LINEAR

ROOT = Path(__file__).parents[2]


def test_the_questions_are_not_among_the_lessons() -> None:
    lessons = (ROOT / "e2e/samples/lessons.jsonl").read_text().splitlines()
    assert not {json.loads(line)["question"] for line in lessons} & set(questions())


def test_trained_adapters_differ_in_rank_and_targets() -> None:
    assert len({adapter.rank for adapter in TRAINED}) == len({adapter.targets for adapter in TRAINED}) == len(TRAINED)
    assert {("q_proj", "v_proj"), ALL_LINEAR} <= {adapter.targets for adapter in TRAINED}
    assert any(adapter.alpha != adapter.rank for adapter in TRAINED)


def test_the_sample_wave_names_adapters_that_exist() -> None:
    wave = yaml.safe_load((ROOT / "crds/samples/adapterwave.yaml").read_text())
    assert set(wave["spec"]["adapters"]["names"]) <= {adapter.name for adapter in GOOD}
