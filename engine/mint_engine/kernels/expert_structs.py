"""Routed experts, as passed to the compiled kernels."""

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from math import prod

import torch

from mint_engine.kernels.linear_structs import NO_TARGETS, Linear, LinearStruct, address, linear_struct

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Kind(IntEnum):
    """The codes of a weight: bytes, or half bytes, the lower one first. Integer codes count from the least value."""

    E4M3 = 0
    INT8 = 1
    E2M1 = 2
    INT4 = 3


class ScaleKind(IntEnum):
    """The type of blocks' scales; POWER is the exponent of a power of two, as in MX formats."""

    FLOAT = 0
    BFLOAT16 = 1
    FLOAT16 = 2
    POWER = 3
    E4M3 = 4


class ZeroKind(IntEnum):
    """How blocks' zero points are stored (see `Codes`)."""

    NONE = 0
    BYTES = 1
    CODES = 2


SCALES = {
    torch.float32: ScaleKind.FLOAT,
    torch.bfloat16: ScaleKind.BFLOAT16,
    torch.float16: ScaleKind.FLOAT16,
    torch.uint8: ScaleKind.POWER,
    torch.float8_e8m0fnu: ScaleKind.POWER,
    torch.float8_e4m3fn: ScaleKind.E4M3,
}
ZEROS = {torch.int8: ZeroKind.BYTES, torch.int32: ZeroKind.CODES}


@dataclass(frozen=True)
class Codes:
    """A linear of all experts that stays quantised: numbers are (code's value - block's zero) * block's scale.

    codes [E, out, *] are row-major; scales [E, rows, columns], one for each block of `block` (outputs, inputs).
    `expert_scales` [E] float32 multiply experts' scales if these are e4m3. `zeros` are int8 in the layout of scales,
    or codes in int32 words, each of several outputs of one column: [E, words, *].
    """

    kind: Kind
    codes: torch.Tensor
    scales: torch.Tensor
    block: tuple[int, int]
    expert_scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None


@dataclass(frozen=True)
class Stack:
    """One linear of all of a layer's experts, of `shape` [E, out, in]; targets as in `Linear`.

    Either its unpacked weight, or quantised linears whose outputs are stacked one below another.
    """

    shape: torch.Size
    weight: torch.Tensor | None
    codes: tuple[Codes, ...] = ()
    targets: torch.Tensor = NO_TARGETS


@dataclass(frozen=True)
class GroupedRouter:
    """A float32 router as in DeepSeek-V3: each expert has a probability; the best of the best groups are chosen.

    The `top_groups` best groups, and then experts in them, are ranked by probability plus `bias` [E] float32; weights
    are probabilities times `factor`. `softmax`: the probabilities of all experts add up to one.
    """

    router: Linear
    bias: torch.Tensor
    groups: int
    top_groups: int
    factor: float
    softmax: bool


@dataclass(frozen=True)
class Experts:
    """A layer's router and experts; each row goes to `top_k` of them. This rank holds those from `first` on.

    `normalised`: a row's weights are scaled to add up to one; `rounded`: they are rounded to the base's dtype. Biases
    [E, out] may be none. `interleaved`: outputs alternate between gates and what they gate, in weight and bias.
    """

    router: Linear | GroupedRouter
    top_k: int
    first: int
    normalised: bool
    rounded: bool
    gate_up: Stack
    down: Stack
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None
    interleaved: bool = False

    @property
    def count(self) -> int:
        """Number of experts that the router chooses from."""
        return (self.router.router if isinstance(self.router, GroupedRouter) else self.router).out_features


class CodesStruct(ctypes.Structure):
    """codes.h: Codes"""

    _fields_ = (
        ("kind", _INT), ("codes", _POINTER), ("pitch", _INT), ("out", _INT), ("scale_kind", _INT),
        ("scales", _POINTER), ("rows", _INT), ("columns", _INT), ("block_rows", _INT), ("block_columns", _INT),
        ("expert_scales", _POINTER), ("zero_kind", _INT), ("zeros", _POINTER),
    )  # fmt: skip


class StackStruct(ctypes.Structure):
    """experts.h: Stack"""

    _fields_ = (
        ("weight", _POINTER), ("codes", ctypes.POINTER(CodesStruct)), ("in_", _INT), ("out", _INT),
        ("targets", _POINTER), ("target_count", _INT),
    )  # fmt: skip


class GroupedRouterStruct(ctypes.Structure):
    """step.h: GroupedRouter"""

    _fields_ = (
        ("router", LinearStruct), ("softmax", _INT), ("bias", _POINTER), ("groups", _INT), ("top_groups", _INT),
        ("factor", _FLOAT),
    )  # fmt: skip


class ExpertsStruct(ctypes.Structure):
    """step.h: Experts"""

    _fields_ = (
        ("router", LinearStruct), ("grouped", ctypes.POINTER(GroupedRouterStruct)), ("count", _INT), ("top_k", _INT),
        ("first", _INT), ("held", _INT), ("normalised", _INT), ("rounded", _INT), ("gate_up", StackStruct),
        ("down", StackStruct), ("gate_up_bias", _POINTER), ("down_bias", _POINTER), ("interleaved", _INT),
    )  # fmt: skip


def experts_struct(experts: Experts) -> ExpertsStruct:
    """Return the struct of a layer's experts."""
    router, grouped = experts.router, None
    if isinstance(router, GroupedRouter):
        found = GroupedRouterStruct(
            linear_struct(router.router), router.softmax, address(router.bias), router.groups, router.top_groups,
            router.factor,
        )  # fmt: skip
        router, grouped = router.router, ctypes.pointer(found)
    return ExpertsStruct(
        linear_struct(router), grouped, experts.count, experts.top_k, experts.first,
        experts.gate_up.shape[0], experts.normalised, experts.rounded,
        stack_struct(experts.gate_up), stack_struct(experts.down), address(experts.gate_up_bias),
        address(experts.down_bias), experts.interleaved,
    )  # fmt: skip


def stack_struct(stack: Stack) -> StackStruct:
    """Return the struct of one linear of a layer's experts."""
    _, high, wide = stack.shape
    codes = (CodesStruct * len(stack.codes))(*map(_codes_struct, stack.codes)) if stack.codes else None
    return StackStruct(address(stack.weight), codes, wide, high, address(stack.targets), stack.targets.shape[0])


def _codes_struct(of: Codes) -> CodesStruct:
    _, high, *row = of.codes.shape
    _, rows, columns = of.scales.shape
    zeros = ZeroKind.NONE if of.zeros is None else ZEROS[of.zeros.dtype]
    return CodesStruct(
        of.kind, address(of.codes), prod(row) * of.codes.itemsize, high, SCALES[of.scales.dtype], address(of.scales),
        rows, columns, *of.block, address(of.expert_scales), zeros, address(of.zeros),
    )  # fmt: skip
