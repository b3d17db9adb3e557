"""The content of a wave's `spec.train`: the same structs for the resource, the placement map and the engine.

Defaults are those of TRL's GRPO (dapo, groups of 8, epsilon 0.2, beta 0), of Tinker's Adam (0.9, 0.95) and of
IcePop's band (0.5 to 5: arXiv 2510.18855). The CRD checks bounds, and the operator checks those of a manifest, which
no API server has seen. These structs check none, so that waves admitted by an earlier version can be read, too.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

Algorithm = Literal["GRPO", "SFT"]
LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "ppo", "importance_sampling", "cross_entropy"]
Scaling = Literal["group", "batch", "none"]
ImportanceSamplingLevel = Literal["token", "sequence"]
Schedule = Literal["constant", "linear", "cosine"]

USUAL_CLIP_LOW = 0.2
SEQUENCE_LOSSES: tuple[LossType, ...] = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo")  # those with both levels in TRL

_Variables = dict[str, bool | int | float | str]


class _Camel(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    """Encoded in camelCase; fields with their default values are omitted."""


def _set_of(struct: _Camel, names: Iterable[str]) -> list[str]:
    written = dict(zip(struct.__struct_fields__, struct.__struct_encode_fields__, strict=True))
    return [written[name] for name in names if getattr(struct, name)]


class Loss(_Camel, frozen=True):
    """How advantages become a loss."""

    type: LossType = "dapo"
    clip_low: float | None = None  # None: USUAL_CLIP_LOW, but no bound for cispo, as in TRL
    clip_high: float = 0.2
    importance_sampling_level: ImportanceSamplingLevel = "token"  # "sequence": GSPO's, for SEQUENCE_LOSSES only
    kl_coefficient: float = 0.0  # of the k3 estimator against the base, that is, with the adapter switched off
    scale_rewards: Scaling = "group"  # whose std divides the advantage: (R - mean) / (std + 1e-4)
    filter_groups: bool = (
        True  # leave out groups whose rewards are all equal; False counts them in the divisor, too, as TRL does
    )
    mask_truncated_completions: bool = False  # leave out those that maxTokens cut off; their rewards still count
    ratio_low: float = 0.5  # IcePop: tokens whose trainer/sampler ratio is outside the band are left out; 0: no bound
    ratio_high: float = 5.0

    @property
    def lowest(self) -> float:
        """The lower bound that the clip sets on a token's probability ratio."""
        if self.clip_low is not None:
            return 1 - self.clip_low
        return 0.0 if self.type == "cispo" else 1 - USUAL_CLIP_LOW

    @property
    def by_sequence(self) -> bool:
        """Whether all tokens of a completion are weighed by one ratio."""
        return self.importance_sampling_level == "sequence"

    @property
    def reads_old(self) -> bool:
        """Whether it depends on the policy's log-probabilities before its first step with an example."""
        return self.type != "cross_entropy" and bool(self.by_sequence or self.ratio_low or self.ratio_high)


class Optimizer(_Camel, frozen=True):
    """AdamW of one policy."""

    learning_rate: float = 1e-4
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # of the policy's own gradient; 0 leaves it as it is


class TrainSampling(_Camel, frozen=True):
    """How rollouts are sampled; seeds come from the policy's, the step, the prompt and the place in its group."""

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: list[str] = []


class ConfigMapKey(_Camel, frozen=True):
    """A key of a ConfigMap in the wave's namespace; its value is JSON lines."""

    name: str
    key: str = "data.jsonl"


JSON_LINES, PARQUET = (".jsonl", ".json", ".ndjson"), ".parquet"  # endings of data sets' files


class Dataset(_Camel, frozen=True):
    """Examples: exactly one of `uri` (JSON lines or Parquet, by its ending), `config_map` and `lines` is set.

    Each example has a prompt (text, or chat messages) and, if the reward or SFT needs it, an answer, which may be the
    end of a chat. Instead of the default fields, it may have TRL's (`messages`, `completion`).
    """

    uri: str = ""
    revision: str = ""
    config_map: ConfigMapKey | None = None
    lines: list[str] = []  # inline JSON lines; the operator replaces config_map by them, at any size
    prompt_field: str = "prompt"
    answer_field: str = "answer"
    system: str = ""  # a chat's system message before each prompt; if set, text prompts become chats
    chat: bool = False  # text prompts become the user's message of a chat
    template_variables: _Variables = {}  # for the base's chat template; if set, text prompts become chats
    shuffle_seed: int = 0

    @property
    def places(self) -> list[str]:
        """Which of the three fields are set, by their encoded names."""
        return _set_of(self, ("uri", "config_map", "lines"))


class ExactMatch(_Camel, frozen=True):
    """1 if the completion, stripped, equals the answer."""

    ignore_case: bool = False


class Regex(_Camel, frozen=True):
    """1 if the pattern matches; `{answer}` in it stands for the example's answer, stripped and escaped."""

    pattern: str
    full: bool = False  # match the complete completion, stripped


class NumericAnswer(_Camel, frozen=True):
    """1 if the last number of the completion equals the answer, within the tolerance."""

    tolerance: float = 1e-6


class JsonSchema(_Camel, frozen=True):
    """1 if the completion is JSON that the schema accepts."""

    schema: str  # JSON text


class Length(_Camel, frozen=True):
    """1 at `target` characters, falling linearly to 0 at `tolerance` away."""

    target: int
    tolerance: int


class RewardService(_Camel, frozen=True):
    """A user's own `Reward` service (training.proto)."""

    address: str  # host:port
    tls: bool = False
    ca_bundle: str = ""  # the certificate authorities to trust, as PEM in base64; empty: the public ones
    timeout_s: float = 30.0
    retries: int = 3
    batch: int = 64  # completions per call


class Weighted(_Camel, frozen=True):
    """One term of a sum of rewards."""

    weight: float
    reward: "Reward"  # not a sum itself


class Reward(_Camel, frozen=True):
    """How completions are scored: exactly one of the fields is set."""

    exact_match: ExactMatch | None = None
    regex: Regex | None = None
    numeric_answer: NumericAnswer | None = None
    json_schema: JsonSchema | None = None
    length: Length | None = None
    service: RewardService | None = None
    sum: list[Weighted] = []

    @property
    def kinds(self) -> list[str]:
        """Which of the fields are set, by their encoded names."""
        return _set_of(self, self.__struct_fields__)


class PolicyTemplate(_Camel, frozen=True):
    """The common settings of policies created by `count`."""

    name_prefix: str = (
        ""  # empty: the wave's name; policy i is named "<prefix>-<i>", in the wave's namespace: "ns/..."
    )
    rank: int = 8
    alpha: float = 16.0
    target_modules: list[str] = []  # empty: all that the base offers
    seed: int = 0  # policy i gets seed + i
    start_from: str = ""  # an adapter whose newest revision is the start; empty: B is zero, A random as in PEFT


class Policy(_Camel, frozen=True):
    """One policy with its own task; unset fields take the value of the wave or the template."""

    name: str  # the adapter that it is published as
    rank: int = 0
    alpha: float = 0.0
    target_modules: list[str] = []
    seed: int | None = None
    start_from: str = ""
    dataset: Dataset | None = None
    reward: Reward | None = None
    loss: Loss | None = None  # replaces the wave's completely, as does the optimizer
    optimizer: Optimizer | None = None


class Policies(_Camel, frozen=True):
    """A wave's policies: one of `count` (of the template), `list` and `manifest` (a file of Policies at a URI)."""

    template: PolicyTemplate = PolicyTemplate()
    count: int = 0
    list: "tuple[Policy, ...]" = ()
    manifest: str = ""


class Evaluation(_Camel, frozen=True):
    """Greedy answers, scored by the reward, before the first step, every `every_steps` steps and after the last."""

    every_steps: int = 10
    prompts: int = 16
    dataset: Dataset | None = None  # None: the training set's first examples


class FailurePolicy(_Camel, frozen=True):
    """How many policies may fail before the wave fails; None: any number, as long as one continues."""

    max_failed: int | None = None


class Train(_Camel, frozen=True):
    """How a wave trains its policies."""

    policies: Policies
    dataset: Dataset | None = None
    reward: Reward | None = None
    algorithm: Algorithm = "GRPO"
    steps: int = 50
    group_size: int = 8
    prompts_per_step: int = 4
    inner_epochs: int = 1
    replay_routes: bool = True  # R3: if the base routes experts, updates use the rollout's experts
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    sampling: TrainSampling = TrainSampling()
    evaluation: Evaluation | None = None
    checkpoint_every_steps: int = 1
    publish_every_steps: int = 1  # 0: only at the end
    admission: Literal["Gang", "Elastic"] = "Gang"
    failure_policy: FailurePolicy = FailurePolicy()
    paused: bool = False
    retry: int = 0  # if raised, policies given up at a lower number are tried again (Progress.retry)
    cancelled: bool = False
