"""The bounds of policies from a manifest, which no API server has checked: the CRD's bounds for policies in a list.

They are not on the structs themselves, because leases are read with those, too: a policy that an earlier version
admitted is trained to its end. A test keeps these bounds equal to the CRD's.
"""

from typing import Annotated

import msgspec

from mint_contracts.training import Policy

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


class _Bounds(msgspec.Struct, frozen=True, rename="camel"):
    """The bounds of the struct of this name in `mint_contracts.training`; a field that is not listed has none."""


class _Loss(_Bounds, frozen=True):
    clip_low: _Share | None = None
    clip_high: _Hundred = 0
    kl_coefficient: _Hundred = 0
    ratio_low: _Ratio = 0
    ratio_high: _Ratio = 0


class _Optimizer(_Bounds, frozen=True):
    learning_rate: _Share = 0
    warmup_steps: _Steps = 0
    beta1: _Decay = 0
    beta2: _Decay = 0
    epsilon: _Share = 0
    weight_decay: _Ten = 0
    max_grad_norm: _Norm = 0


class _Dataset(_Bounds, frozen=True):
    uri: _Uri = ""
    revision: _Revision = ""
    prompt_field: _Field = ""
    answer_field: _Field = ""
    system: _System = ""
    template_variables: _Variables = {}
    shuffle_seed: _Seed = 0


class _Regex(_Bounds, frozen=True):
    pattern: _Pattern


class _NumericAnswer(_Bounds, frozen=True):
    tolerance: _Distance = 0


class _JsonSchema(_Bounds, frozen=True):
    schema: _Schema


class _Length(_Bounds, frozen=True):
    target: _Target
    tolerance: _Characters


class _RewardService(_Bounds, frozen=True):
    address: _Address
    ca_bundle: _Bundle = ""
    timeout_s: _Seconds = 1
    retries: _Retries = 0
    batch: _Batch = 1


class _Weighted(_Bounds, frozen=True):
    weight: _Weight
    reward: "_Reward"


class _Reward(_Bounds, frozen=True):
    regex: _Regex | None = None
    numeric_answer: _NumericAnswer | None = None
    json_schema: _JsonSchema | None = None
    length: _Length | None = None
    service: _RewardService | None = None
    sum: Annotated[list[_Weighted], msgspec.Meta(max_length=8)] = []


class _Policy(_Bounds, frozen=True):
    rank: _Rank = 0
    alpha: _Alpha = 0
    seed: _Seed | None = None
    dataset: _Dataset | None = None
    reward: _Reward | None = None
    loss: _Loss | None = None
    optimizer: _Optimizer | None = None


# built on import: msgspec 0.22 crashes if several threads decode a type for the first time at once
_POLICY, _BOUNDS = msgspec.json.Decoder(Policy), msgspec.json.Decoder(_Policy)


def bounded(line: bytes) -> Policy:
    """Decode a policy from JSON. Raises MsgspecError or UnicodeDecodeError if it is invalid or out of bounds."""
    policy = _POLICY.decode(line)
    _BOUNDS.decode(line)
    return policy
