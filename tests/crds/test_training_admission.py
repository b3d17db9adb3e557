"""What the API server accepts and refuses in `spec.train`, and that each refusal says what to do."""

import itertools
from typing import Any

import msgspec
import pytest

from mint_contracts.resources import AdapterWaveSpec, BaseModelRef
from mint_contracts.training import Dataset, ExactMatch, Loss, Policies, Policy, Reward, Train
from tests.apiserver import ApiServer, KubectlError
from tests.crds.admission import Admission, merged, resource
from tests.crds.training_waves import (
    BY_RULE,
    EXACT,
    LINES,
    REFUSED_CHANGES,
    SMALLEST,
    dataset,
    listed,
    policies,
    reward,
    train,
    weighted,
)

NUMBERS = itertools.count()


ACCEPTED = [
    {},
    policies(count=1024),
    policies(count=2, template={"namePrefix": "acme/support", "rank": 4, "seed": 7}),
    policies(count=2, template={"namePrefix": "", "startFrom": ""}),
    listed({"name": "acme/a", "startFrom": ""}, {"name": "acme/b", "startFrom": "acme/a"}),
    listed({"name": "acme/a"}, {"name": "acme/b", "rank": 4, "optimizer": {"learningRate": 0.001}}),
    listed({"name": "a", "loss": {"type": "cispo", "clipHigh": 4, "klCoefficient": 0.1}}, {"name": "b"}),
    listed({"name": "a", "dataset": LINES, "reward": EXACT}, dataset=None, reward=None),
    listed(*({"name": f"acme/{number}", "dataset": LINES, "reward": EXACT} for number in range(256))),
    policies(manifest="s3://bucket/policies.jsonl"),
    policies(manifest="https://host:8443/policies.parquet"),
    {"train": {"policies": {"count": None, "manifest": "s3://bucket/p.jsonl"}, "dataset": None, "reward": None}},
    dataset(uri="pvc://data/train.jsonl"),
    dataset(uri="hf://acme/data/train.parquet", revision="9f3c2ab"),
    dataset(uri="hf://datasets/acme/data/hard/train.parquet", revision="main"),
    listed({"name": "a", "dataset": {"uri": "hf://datasets/acme/data/train.jsonl", "revision": "v1"}}, {"name": "b"}),
    dataset(configMap={"name": "questions"}),
    dataset(configMap={"name": "questions", "key": "hard.jsonl"}, system="Answer in a word."),
    dataset(lines=["{}"] * 1024),
    dataset(**LINES, templateVariables={"enable_thinking": False, "reasoning_effort": "low", "budget": 0.5}),
    listed({"name": "a", "dataset": LINES | {"templateVariables": {"enable_thinking": False}}}, {"name": "b"}),
    train(evaluation={"dataset": LINES | {"templateVariables": {"enable_thinking": False}}}),
    reward(regex={"pattern": "^{answer}$", "full": True}),
    reward(numericAnswer={"tolerance": 0}),
    reward(jsonSchema={"schema": '{"type": "object"}'}),
    reward(length={"target": 20, "tolerance": 10}),
    reward(service={"address": "judge.acme.svc:9000", "tls": True}),
    reward(service={"address": "judge.acme.svc:9000", "tls": True, "caBundle": "LS0tLS1CRUdJTg=="}),
    weighted(EXACT, {"length": {"target": 0, "tolerance": 1}}, {"service": {"address": "judge:1"}}),
    train(algorithm="SFT", reward=None),
    train(steps=1, groupSize=2, promptsPerStep=1, innerEpochs=4, replayRoutes=False),
    train(loss={"type": "cispo", "klCoefficient": 0.1, "ratioLow": 0.5, "ratioHigh": 2}),
    train(loss={"importanceSamplingLevel": "sequence", "maskTruncatedCompletions": True}),
    listed({"name": "a", "loss": {"type": "cispo", "importanceSamplingLevel": "sequence", "clipLow": 0.0003}}),
    train(optimizer={"learningRate": 0.003, "schedule": "cosine", "warmupSteps": 5}),
    train(evaluation={"everySteps": 5}),
    train(algorithm="SFT", evaluation={"everySteps": 5}),
    listed({"name": "a", "reward": EXACT}, reward=None, algorithm="SFT", evaluation={}),
    train(admission="Elastic", failurePolicy={"maxFailed": 0}, paused=True),
    {"serve": {"replicas": 2, "residency": "Host"}},
]


BY_SCHEMA: list[tuple[dict[str, Any], str]] = [
    (train(policies=None), "spec.train.policies: Required value"),
    (policies(count=1025), "spec.train.policies.count"),
    (listed({"name": "a"}, {"name": "a"}), "spec.train.policies.list[1]: Duplicate value"),
    (listed(*({"name": f"a{number}"} for number in range(257))), "spec.train.policies.list: Too many"),
    (policies(count=1, template={"rank": 513}), "spec.train.policies.template.rank"),
    (train(groupSize=1), "spec.train.groupSize"),
    (train(steps=0), "spec.train.steps"),
    (train(promptsPerStep=0), "spec.train.promptsPerStep"),
    (train(algorithm="DPO"), 'supported values: "GRPO", "SFT"'),
    (train(loss={"type": "best"}), "spec.train.loss.type"),
    (train(loss={"importanceSamplingLevel": "sentence"}), 'supported values: "token", "sequence"'),
    (listed({"name": "a", "loss": {"type": "best"}}), "spec.train.policies.list[0].loss.type"),
    (listed({"name": "a", "loss": {"clipLow": 2}}), "spec.train.policies.list[0].loss.clipLow"),
    (listed({"name": "a", "loss": {"beta": 0.1}}), 'unknown field "spec.train.policies.list[0].loss.beta"'),
    (train(optimizer={"learningRate": 2}), "spec.train.optimizer.learningRate"),
    (train(optimizer={"beta2": 1}), "spec.train.optimizer.beta2"),
    (train(sampling={"temperature": 0}), "spec.train.sampling.temperature"),
    (weighted({"sum": []}), 'unknown field "spec.train.reward.sum[0].reward.sum"'),
    (weighted(*[EXACT] * 9), "spec.train.reward.sum: Too many"),
    (reward(service={"address": "no port"}), "spec.train.reward.service.address"),
    (dataset(lines=["{}"] * 1025), "spec.train.dataset.lines: Too many"),
    (dataset(**LINES, templateVariables={f"a{n}": n for n in range(33)}), "dataset.templateVariables: Too many"),
    (dataset(**LINES, templateVariables=["enable_thinking"]), "spec.train.dataset.templateVariables"),
]

CHANGES: list[dict[str, Any]] = [
    {"steps": 100},
    {"paused": True},
    {"cancelled": True},
    {"admission": "Elastic", "failurePolicy": {"maxFailed": 3}},
    {"publishEverySteps": 5, "checkpointEverySteps": 5},
    {"retry": 2},
]


@pytest.mark.parametrize("changes", ACCEPTED, ids=lambda changes: repr(changes)[:80])
def test_accepted(admission: Admission, changes: dict[str, Any]) -> None:
    assert admission.refusal(resource("AdapterWave", merged(SMALLEST, changes))) == ""


@pytest.mark.parametrize(("changes", "why"), BY_RULE + BY_SCHEMA, ids=lambda part: repr(part)[:80])
def test_refused(admission: Admission, changes: dict[str, Any], why: str) -> None:
    assert why in admission.refusal(resource("AdapterWave", merged(SMALLEST, changes)))


@pytest.fixture
def stored(api_server: ApiServer) -> str:
    """Store a training wave; return its namespace."""
    namespace = api_server.namespace(f"training-{next(NUMBERS)}")
    text = msgspec.json.encode(resource("AdapterWave", SMALLEST)).decode()
    api_server.kubectl("apply", "-n", namespace, "-f", "-", stdin=text)
    return namespace


def patch(api_server: ApiServer, namespace: str, spec: dict[str, Any]) -> None:
    text = msgspec.json.encode({"spec": spec}).decode()
    api_server.kubectl("patch", "-n", namespace, "aw/sample", "--type=merge", "-p", text)


def test_a_running_wave_may_be_extended_paused_and_cancelled(api_server: ApiServer, stored: str) -> None:
    for change in CHANGES:
        patch(api_server, stored, {"train": change})
        now = msgspec.json.decode(api_server.kubectl("get", "-n", stored, "aw/sample", "-o", "json"))["spec"]["train"]
        assert {field: now[field] for field in change} == change


def test_the_training_task_cannot_change(api_server: ApiServer, stored: str) -> None:
    for change, why in REFUSED_CHANGES:
        with pytest.raises(KubectlError, match=why):
            patch(api_server, stored, {"train": change})


def test_a_cancelled_wave_cannot_be_resumed(api_server: ApiServer, stored: str) -> None:
    patch(api_server, stored, {"train": {"cancelled": True}})
    with pytest.raises(KubectlError, match="a cancelled wave cannot be resumed"):
        patch(api_server, stored, {"train": {"cancelled": False}})
    patch(api_server, stored, {"train": {"retry": 2}})
    with pytest.raises(KubectlError, match="retry can only be increased"):
        patch(api_server, stored, {"train": {"retry": 1}})
    with pytest.raises(KubectlError, match="a serving wave cannot become a training wave or vice versa"):
        patch(api_server, stored, {"train": None, "adapters": {"names": ["a"]}})


def test_defaults_are_those_of_the_structs(admission: Admission) -> None:
    stored = admission.created(resource("AdapterWave", SMALLEST))["spec"]
    wanted = Train(
        policies=Policies(count=8), dataset=Dataset(lines=LINES["lines"]), reward=Reward(exact_match=ExactMatch())
    )
    assert msgspec.convert(stored, AdapterWaveSpec) == AdapterWaveSpec(
        base_model_ref=BaseModelRef(name="smollm2"), train=wanted
    )


def test_variables_of_a_template_are_kept_as_they_are_said(admission: Admission) -> None:
    variables: dict[str, bool | int | float | str]
    variables = {"enable_thinking": False, "reasoning_effort": "low", "budget": 512, "share": 0.5}
    stored = admission.created(
        resource("AdapterWave", merged(SMALLEST, dataset(**LINES, templateVariables=variables)))
    )
    train = msgspec.convert(stored["spec"], AdapterWaveSpec).train
    assert train is not None
    assert train.dataset == Dataset(lines=LINES["lines"], template_variables=variables)


def test_a_policy_of_a_list_keeps_what_it_leaves_out(admission: Admission) -> None:
    stored = admission.created(resource("AdapterWave", merged(SMALLEST, listed({"name": "acme/a"}))))["spec"]
    train_ = msgspec.convert(stored, AdapterWaveSpec).train
    assert train_ is not None
    assert train_.policies.list == (Policy(name="acme/a"),)


def test_a_policys_own_loss_takes_nothing_from_the_waves(admission: Admission) -> None:
    given = {"name": "a", "loss": {"type": "grpo", "klCoefficient": 0.5}}
    wave = listed(given, {"name": "b"}, loss={"type": "cispo", "clipHigh": 4})
    train_ = msgspec.convert(
        admission.created(resource("AdapterWave", merged(SMALLEST, wave)))["spec"], AdapterWaveSpec
    ).train
    assert train_ is not None
    assert train_.loss == Loss(type="cispo", clip_high=4)
    assert [each.loss for each in train_.policies.list] == [Loss(type="grpo", kl_coefficient=0.5), None]


def test_columns_tell_how_training_stands(api_server: ApiServer, stored: str) -> None:
    training = {"step": 12, "steps": 50, "progress": "12/50", "reward": {"recent": 0.625}}
    status = {"phase": "Training", "training": training, "eta": "4m10s", "summary": "8/8", "counts": {"adapters": 8}}
    text = msgspec.json.encode({"status": status}).decode()
    api_server.kubectl("patch", "-n", stored, "aw/sample", "--subresource=status", "--type=merge", "-p", text)
    header, row = api_server.kubectl("get", "-n", stored, "aw").splitlines()
    assert header.split()[-4:] == ["STEP", "REWARD", "ETA", "AGE"]
    assert row.split()[2] == "Training"
    assert row.split()[-4:-1] == ["12/50", "0.625", "4m10s"]


def test_waiting_for_the_end_works(api_server: ApiServer, stored: str) -> None:
    done = {"type": "Complete", "status": "True", "reason": "TrainingComplete", "message": "8 of 8 policies"}
    conditions = [done | {"lastTransitionTime": "2026-01-01T00:00:00Z"}]
    status = {"phase": "Complete", "observedGeneration": 1, "conditions": conditions}
    text = msgspec.json.encode({"status": status}).decode()
    api_server.kubectl("patch", "-n", stored, "aw/sample", "--subresource=status", "--type=merge", "-p", text)
    api_server.kubectl("wait", "-n", stored, "aw/sample", "--for=condition=Complete", "--timeout=30s")
