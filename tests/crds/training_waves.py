"""Training waves for the API server: the smallest one, and changes of it that it must refuse."""

from typing import Any

LINES = {"lines": ['{"prompt": "2+2=", "answer": "4"}']}
EXACT: dict[str, Any] = {"exactMatch": {}}
SMALLEST: dict[str, Any] = {
    "baseModelRef": {"name": "smollm2"},
    "train": {"policies": {"count": 8}, "dataset": LINES, "reward": EXACT},
}


def train(**fields: Any) -> dict[str, Any]:
    return {"train": fields}


def policies(**fields: Any) -> dict[str, Any]:
    return train(policies={"count": None} | fields)


def listed(*given: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"train": {"policies": {"count": None, "list": list(given)}} | fields}


def dataset(**fields: Any) -> dict[str, Any]:
    return train(dataset={"lines": None} | fields)


def reward(**fields: Any) -> dict[str, Any]:
    return train(reward={"exactMatch": None} | fields)


def weighted(*parts: dict[str, Any]) -> dict[str, Any]:
    return reward(sum=[{"weight": 0.5, "reward": part} for part in parts])


BY_RULE: list[tuple[dict[str, Any], str]] = [
    ({"adapters": {"names": ["a"]}}, "set exactly one of adapters (to serve existing ones) and train"),
    ({"train": None}, "set exactly one of adapters (to serve existing ones) and train"),
    (policies(), "set exactly one of count (identical policies), list"),
    (policies(count=2, list=[{"name": "a"}]), "set exactly one of count (identical policies), list"),
    (policies(count=2, manifest="s3://b/p"), "set exactly one of count (identical policies), list"),
    (policies(manifest="pvc://claim/p.jsonl"), "manifest must begin with s3://"),
    (policies(manifest="hf://acme/p/p.jsonl"), "manifest must begin with s3://"),
    (policies(manifest="https://user:word@host/p"), "manifest must be a plain URI"),
    (policies(count=1, template={"namePrefix": "../x"}), "is not a valid prefix of an adapter's name"),
    (policies(count=1, template={"startFrom": "a//b"}), "is not a valid adapter name"),
    (listed({"name": "a", "startFrom": "b@1"}), "is not a valid adapter name; leave it empty"),
    (listed({"name": "two words"}), "is not a valid adapter name"),
    (train(dataset=None), "set dataset, or a dataset for each policy of policies.list"),
    (
        listed({"name": "a", "dataset": LINES}, {"name": "b"}, dataset=None),
        "set dataset, or a dataset for each policy",
    ),
    (train(reward=None), "GRPO needs a reward"),
    (listed({"name": "a", "reward": EXACT}, {"name": "b"}, reward=None), "GRPO needs a reward"),
    (train(algorithm="SFT", reward=None, evaluation={}), "evaluation needs a reward, by which its answers"),
    (
        listed({"name": "a", "reward": EXACT}, {"name": "b"}, reward=None, algorithm="SFT", evaluation={}),
        "evaluation needs a reward, by which its answers",
    ),
    (train(loss={"type": "cross_entropy"}), "GRPO does not support the cross_entropy loss"),
    (
        listed({"name": "a"}, {"name": "b", "loss": {"type": "cross_entropy"}}),
        "GRPO does not support the cross_entropy loss",
    ),
    (listed({"name": "a", "loss": {}}, algorithm="SFT"), "SFT uses its own loss; remove loss from each policy"),
    *(
        (
            make(loss={"type": kind, "importanceSamplingLevel": "sequence"}),
            "importanceSamplingLevel sequence needs the",
        )
        for kind in ("ppo", "importance_sampling")
        for make in (train, lambda **own: listed({"name": "a"} | own))
    ),
    (train(loss={"ratioLow": 3, "ratioHigh": 2}), "ratioLow must not be above ratioHigh"),
    (listed({"name": "a", "loss": {"ratioLow": 3, "ratioHigh": 2}}), "ratioLow must not be above ratioHigh"),
    (dataset(), "set exactly one of uri (JSONL or Parquet), configMap"),
    (dataset(uri="s3://b/x.jsonl", **LINES), "set exactly one of uri (JSONL or Parquet), configMap"),
    (dataset(uri="hf://acme/data/train.jsonl"), "an hf:// source needs a revision"),
    *(
        (dataset(uri=uri, revision="main"), "an hf:// dataset must be a file in a repository, without a revision")
        for uri in (
            "hf://acme/train.jsonl",
            "hf://datasets/acme/train.jsonl",
            "hf://datasets/acme/data@main/train.jsonl",
            "hf://spaces/acme/data/train.jsonl",
        )
    ),
    (dataset(uri="ftp://host/x.jsonl"), "uri must begin with file://"),
    *(
        (changes, "uri must name a file that ends in .jsonl, .json or .ndjson (JSON lines) or in .parquet")
        for uri in ("s3://bucket/train.csv", "s3://bucket/train.jsonl.gz", "s3://bucket/folder")
        for changes in (
            dataset(uri=uri),
            listed({"name": "a", "dataset": {"uri": uri}}),
            train(evaluation={"dataset": {"uri": uri}}),
        )
    ),
    (train(evaluation={"dataset": {}}), "set exactly one of uri (JSONL or Parquet), configMap"),
    (reward(), "set exactly one of exactMatch, regex, numericAnswer, jsonSchema, length, service and sum"),
    (
        reward(exactMatch={}, regex={"pattern": "x"}),
        "set exactly one of exactMatch, regex, numericAnswer, jsonSchema",
    ),
    (reward(service={"address": "judge:1", "caBundle": "LS0t"}), "caBundle needs TLS; set tls to true"),
    (weighted({}), "set exactly one of exactMatch, regex, numericAnswer, jsonSchema, length and service"),
    (weighted(EXACT | {"service": {"address": "judge:1"}}), "set exactly one of exactMatch, regex"),
]
FROZEN = "what a policy learns, and how, is immutable"
REFUSED_CHANGES = [
    ({"policies": {"count": 9}}, FROZEN),
    ({"policies": {"template": {"rank": 4}}}, FROZEN),
    ({"dataset": {"lines": ["{}"]}}, FROZEN),
    ({"dataset": {"templateVariables": {"enable_thinking": True}}}, FROZEN),
    ({"reward": {"exactMatch": {"ignoreCase": True}}}, FROZEN),
    ({"optimizer": {"learningRate": 0.01}}, FROZEN),
    ({"sampling": {"maxTokens": 8}}, FROZEN),
    ({"loss": {"type": "grpo"}}, FROZEN),
    ({"groupSize": 4}, FROZEN),
    ({"evaluation": {"everySteps": 1}}, "dataset, reward and evaluation cannot be added or removed later"),
]
LATER = [
    "a cancelled wave cannot be resumed",
    "retry can only be increased",
    "a serving wave cannot become a training wave or vice versa",
    FROZEN,
]
SHOWN = [why for _, why in BY_RULE] + [why for _, why in REFUSED_CHANGES] + LATER
