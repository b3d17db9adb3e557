"""What a wave's `spec.train` says: the same structs in the resource, the placement map and the engine.

Defaults are those of TRL's GRPO (dapo, groups of 8, epsilon 0.2, beta 0), of Tinker's Adam (0.9, 0.95) and of
IcePop's band (0.5 to 5: arXiv 2510.18855). How a policy is trained may come from a manifest, which no API server has
checked: its numbers have their bounds here, too (a test holds both equal).
"""

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

Algorithm = Literal["GRPO", "SFT"]
LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "ppo", "importance_sampling", "cross_entropy"]
Scaling = Literal["group", "batch", "none"]
Schedule = Literal["constant", "linear", "cosine"]

USUAL_CLIP_LOW = 0.2

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Decay = Annotated[float, msgspec.Meta(ge=0, le=0.999999)]
_Ratio = Annotated[float, msgspec.Meta(ge=0, le=1000)]
_Hundred = Annotated[float, msgspec.Meta(ge=0, le=100)]
_Ten = Annotated[float, msgspec.Meta(ge=0, le=10)]
_Norm = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
_Steps = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
_Rank = Annotated[int, msgspec.Meta(ge=0, le=512)]
_Alpha = Annotated[float, msgspec.Meta(ge=0, le=65536)]
_Seed = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
_Text = Annotated[str, msgspec.Meta(max_length=4096)]
_Uri = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Revision = Annotated[str, msgspec.Meta(max_length=200)]
_Field = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_System = Annotated[str, msgspec.Meta(max_length=8192)]
_Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Schema = Annotated[str, msgspec.Meta(min_length=2, max_length=65536)]
_Distance = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
_Target = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
_Characters = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Address = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.-]+:[0-9]{1,5}\Z", min_length=3, max_length=300)]
_Bundle = Annotated[str, msgspec.Meta(max_length=16384)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=600)]
_Retries = Annotated[int, msgspec.Meta(ge=0, le=10)]
_Batch = Annotated[int, msgspec.Meta(ge=1, le=1024)]
_Weight = Annotated[float, msgspec.Meta(ge=-1000, le=1000)]
_Variables = Annotated[dict[_Name, bool | int | float | _Text], msgspec.Meta(max_length=32)]


class _Camel(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    """camelCase on the wire; unset fields stay off it."""


def _set_of(struct: _Camel, names: Iterable[str]) -> list[str]:
    written = dict(zip(struct.__struct_fields__, struct.__struct_encode_fields__, strict=True))
    return [written[name] for name in names if getattr(struct, name)]


class Loss(_Camel, frozen=True):
    """How advantages become a loss."""

    type: LossType = "dapo"
    clip_low: _Share | None = None  # None: USUAL_CLIP_LOW; cispo: no bound, as in TRL
    clip_high: _Hundred = 0.2
    kl_coefficient: _Hundred = 0.0  # of the k3 estimator against the base: the adapter switched off
    scale_rewards: Scaling = "group"  # what the advantage is divided by: (R - mean) / (std + 1e-4)
    filter_groups: bool = (
        True  # leave out groups whose rewards are all alike; False divides by them, too, as TRL does
    )
    ratio_low: _Ratio = 0.5  # IcePop: tokens whose trainer/sampler ratio leaves the band are left out; 0: no bound
    ratio_high: _Ratio = 5.0

    @property
    def lowest(self) -> float:
        """What the clip keeps a token's probability ratio above."""
        if self.clip_low is not None:
            return 1 - self.clip_low
        return 0.0 if self.type == "cispo" else 1 - USUAL_CLIP_LOW


class Optimizer(_Camel, frozen=True):
    """AdamW of one policy."""

    learning_rate: _Share = 1e-4
    schedule: Schedule = "constant"
    warmup_steps: _Steps = 0
    beta1: _Decay = 0.9
    beta2: _Decay = 0.95
    epsilon: _Share = 1e-8
    weight_decay: _Ten = 0.0
    max_grad_norm: _Norm = 1.0  # of the policy's own gradient; 0 leaves it as it is


class TrainSampling(_Camel, frozen=True):
    """How rollouts are drawn; seeds come from the policy's seed, the step, the prompt and the place in its group."""

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: list[str] = []


class ConfigMapKey(_Camel, frozen=True):
    """A key of a ConfigMap of the wave's namespace, of JSON lines."""

    name: str
    key: str = "data.jsonl"


class Dataset(_Camel, frozen=True):
    """Examples: exactly one of `uri` (JSONL or Parquet, by its ending), `config_map` and `lines` is set.

    Each example has a prompt (text, or chat messages) and, where the reward or SFT needs it, an answer.
    """

    uri: _Uri = ""
    revision: _Revision = ""
    config_map: ConfigMapKey | None = None
    lines: list[str] = []  # JSON lines themselves; what the operator puts in place of config_map, of any size
    prompt_field: _Field = "prompt"
    answer_field: _Field = "answer"
    system: _System = ""  # put before each prompt as a chat's system message; with it, text prompts become chats
    chat: bool = False  # text prompts become the user's message of a chat
    template_variables: _Variables = {}  # of the base's chat template; with them, text prompts become chats
    shuffle_seed: _Seed = 0

    @property
    def places(self) -> list[str]:
        """Which of the three are set, as they are written."""
        return _set_of(self, ("uri", "config_map", "lines"))


class ExactMatch(_Camel, frozen=True):
    """1 where the completion, stripped, is the answer."""

    ignore_case: bool = False


class Regex(_Camel, frozen=True):
    """1 where the pattern matches; `{answer}` in it stands for the example's answer, escaped."""

    pattern: _Pattern
    full: bool = False  # the whole completion, stripped


class NumericAnswer(_Camel, frozen=True):
    """1 where the last number of the completion is the answer, within the tolerance."""

    tolerance: _Distance = 1e-6


class JsonSchema(_Camel, frozen=True):
    """1 where the completion is JSON that the schema accepts."""

    schema: _Schema  # JSON text


class Length(_Camel, frozen=True):
    """1 at `target` characters, falling linearly to 0 at `tolerance` away."""

    target: _Target
    tolerance: _Characters


class RewardService(_Camel, frozen=True):
    """A user's own `Reward` service (training.proto)."""

    address: _Address  # host:port
    tls: bool = False
    ca_bundle: _Bundle = ""  # the authorities that vouch for it, as PEM in base64; empty: the public ones
    timeout_s: _Seconds = 30.0
    retries: _Retries = 3
    batch: _Batch = 64  # completions a call


class Weighted(_Camel, frozen=True):
    """One part of a sum."""

    weight: _Weight
    reward: "Reward"  # no sum


class Reward(_Camel, frozen=True):
    """Exactly one of the fields is set."""

    exact_match: ExactMatch | None = None
    regex: Regex | None = None
    numeric_answer: NumericAnswer | None = None
    json_schema: JsonSchema | None = None
    length: Length | None = None
    service: RewardService | None = None
    sum: Annotated[list[Weighted], msgspec.Meta(max_length=8)] = []

    @property
    def kinds(self) -> list[str]:
        """Which of the fields are set, as they are written."""
        return _set_of(self, self.__struct_fields__)


class PolicyTemplate(_Camel, frozen=True):
    """What policies made by count have in common."""

    name_prefix: str = (
        ""  # empty: the wave's name; policy i is named "<prefix>-<i>", in the wave's namespace: "ns/..."
    )
    rank: int = 8
    alpha: float = 16.0
    target_modules: list[str] = []  # empty: all that the base offers
    seed: int = 0  # policy i gets seed + i
    start_from: str = ""  # an adapter whose newest revision is the start; empty: B is zero, A random (PEFT's)


class Policy(_Camel, frozen=True):
    """One policy with its own task; what is left out is the wave's or the template's."""

    name: str  # the adapter that it is published as
    rank: _Rank = 0
    alpha: _Alpha = 0.0
    target_modules: list[str] = []
    seed: _Seed | None = None
    start_from: str = ""
    dataset: Dataset | None = None
    reward: Reward | None = None
    loss: Loss | None = None  # in place of the whole of the wave's, as is the optimizer
    optimizer: Optimizer | None = None


class Policies(_Camel, frozen=True):
    """Exactly one of `count` (of the template), `list` and `manifest` (a file of Policies at a URI) is set."""

    template: PolicyTemplate = PolicyTemplate()
    count: int = 0
    list: "tuple[Policy, ...]" = ()
    manifest: str = ""


class Evaluation(_Camel, frozen=True):
    """Greedy answers, scored by the reward, every so many steps."""

    every_steps: int = 10
    prompts: int = 16
    dataset: Dataset | None = None  # None: the training set's first examples


class FailurePolicy(_Camel, frozen=True):
    """How many policies may fail before the wave is failed; None: any number, as long as one goes on."""

    max_failed: int | None = None


class Train(_Camel, frozen=True):
    """A wave's training."""

    policies: Policies
    dataset: Dataset | None = None
    reward: Reward | None = None
    algorithm: Algorithm = "GRPO"
    steps: int = 50
    group_size: int = 8
    prompts_per_step: int = 4
    inner_epochs: int = 1
    replay_routes: bool = True  # R3: where the base routes experts, an update takes those that the rollout took
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    sampling: TrainSampling = TrainSampling()
    evaluation: Evaluation | None = None
    checkpoint_every_steps: int = 1
    publish_every_steps: int = 1  # 0: only at the end
    admission: Literal["Gang", "Elastic"] = "Gang"
    failure_policy: FailurePolicy = FailurePolicy()
    paused: bool = False
    retry: int = 0  # raised, policies that were given up at a lower number are tried again (Progress.retry)
    cancelled: bool = False
