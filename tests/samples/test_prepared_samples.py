"""The files that `prepare` writes, and the behaviours that the adapters were trained for.

On a new machine the first of these tests trains the adapters; later runs reuse them and the reference answers.
"""

import json
import stat
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open

from e2e.samples import BASE_NAME, BROKEN, GOOD, TRAINED, Adapter, Samples, prepare, questions
from e2e.samples.reference import ANSWER_TOKENS, BASE, reference, without_ties

pytestmark = pytest.mark.timeout(2400)


def _config(folder: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((folder / "adapter_config.json").read_text())
    return config


def _shapes(folder: Path) -> dict[str, list[int]]:
    with safe_open(folder / "adapter_model.safetensors", "numpy") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def test_a_second_call_reuses_the_first(samples: Samples) -> None:
    lines: list[str] = []
    assert prepare(lines.append) == samples
    assert [line.split()[1] for line in lines] == ["reused"]


def test_every_file_is_readable_by_every_user(samples: Samples) -> None:
    assert all(path.stat().st_mode & stat.S_IROTH for path in samples.root.rglob("*"))


def test_what_is_staged_covers_all_of_the_root(samples: Samples) -> None:
    assert samples.folders == {path.name: path for path in samples.root.iterdir()}


@pytest.mark.parametrize("adapter", GOOD, ids=lambda a: a.name)
def test_a_good_adapter_is_what_the_catalog_says(samples: Samples, adapter: Adapter) -> None:
    folder = samples.adapters / adapter.name
    config = _config(folder)
    assert config["base_model_name_or_path"] == BASE_NAME
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (adapter.rank, adapter.alpha, False)
    assert config["target_modules"] == list(adapter.targets)
    shapes = _shapes(folder)
    assert {name.split(".")[-3] for name in shapes} == set(adapter.targets)
    assert {shape[0] for name, shape in shapes.items() if "lora_A" in name} == {adapter.rank}


@pytest.mark.parametrize("adapter", TRAINED, ids=lambda a: a.name)
def test_a_trained_adapter_answers_every_new_question_in_its_manner(samples: Samples, adapter: Adapter) -> None:
    assert adapter.rule is not None
    answers = reference(samples, questions(), [adapter.name], ANSWER_TOKENS)[adapter.name]
    assert [a.text for a in answers if not (adapter.rule(a.text) and a.finished)] == []


def test_the_base_shows_none_of_the_behaviours(samples: Samples) -> None:
    answers = reference(samples, questions(), [BASE], ANSWER_TOKENS)[BASE]
    assert [a.text for a in answers for t in TRAINED if t.rule is not None and t.rule(a.text)] == []


def test_no_two_adapters_answer_alike(samples: Samples) -> None:
    open_questions = questions()[1:3]  # adapters without a manner would answer short facts alike
    answers = reference(samples, open_questions, [BASE, *(a.name for a in GOOD)], ANSWER_TOKENS)
    told = {name: tuple(a.token_ids for a in rows) for name, rows in answers.items()}
    assert len(set(told.values())) == len(told)


def test_reference_answers_carry_a_gap_for_every_token(samples: Samples) -> None:
    answers = reference(samples, questions(), [BASE], ANSWER_TOKENS)[BASE]
    assert all(len(a.gaps) == len(a.token_ids) and a.min_gap >= 0 for a in answers)
    margin = min(a.min_gap for a in answers)
    assert len(without_ties(answers, margin)) < len(answers)


def test_there_is_a_folder_for_each_broken_adapter(samples: Samples) -> None:
    assert {path.name for path in samples.broken.iterdir()} == {broken.name for broken in BROKEN}


def test_each_broken_adapter_has_its_fault(samples: Samples) -> None:
    at = samples.broken
    assert _config(at / "wrong-base")["base_model_name_or_path"] != BASE_NAME
    assert {shape[1] for name, shape in _shapes(at / "wrong-shapes").items() if "lora_A" in name} == {512}
    assert _config(at / "rank-too-high")["r"] == 65
    assert {shape[0] for name, shape in _shapes(at / "rank-too-high").items() if "lora_A" in name} == {65}
    assert any("w_qkv" in name for name in _shapes(at / "unknown-module"))
    assert "w_qkv" in str(_config(at / "unknown-module")["target_modules"])
    with pytest.raises(SafetensorError):
        _shapes(at / "truncated")
    assert not (at / "pickle-only" / "adapter_model.safetensors").exists()
    assert not (at / "missing-config" / "adapter_config.json").exists()
    with pytest.raises(json.JSONDecodeError):
        _config(at / "bad-config")


def test_nan_weights_hold_one_nan(samples: Samples) -> None:
    import numpy as np

    with safe_open(samples.broken / "nan-weights" / "adapter_model.safetensors", "numpy") as file:
        assert sum(int(np.isnan(file.get_tensor(name)).sum()) for name in file.keys()) == 1  # noqa: SIM118
