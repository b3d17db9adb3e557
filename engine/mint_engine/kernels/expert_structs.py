"""Routed experts, as passed to the compiled kernels."""

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from math import prod

import torch

from mint_engine.kernels.linear_structs import NO_TARGETS, Linear, LinearStruct, address, linear_struct

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

# Types of scales, numbered as in codes.h.
_SCALES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.uint8: 3,
    torch.float8_e8m0fnu: 3,
    torch.float8_e4m3fn: 4,
}
_ZEROS = {torch.int8: 1, torch.int32: 2}  # types of zero points, numbered as in codes.h


class Kind(IntEnum):
    """The codes of a weight: bytes, or half bytes, the lower one first. Integer codes count from the least value."""

    E4M3 = 0
    INT8 = 1
    E2M1 = 2
    INT4 = 3


@dataclass(frozen=True)
class Codes:
    """A linear of all experts that stays quantised: numbers are (code's value - block's zero) * block's scale.

    codes [E, out, *] are row-major; scales [E, rows, columns], one for each block of `block` (outputs, inputs).
    `every` [E] float32 multiplies an expert's scales if they are e4m3. `zeros` are int8 in the layout of scales, or
    codes in int32 words, each of several outputs of one column: [E, words, *].
    """

    kind: Kind
    codes: torch.Tensor
    scales: torch.Tensor
    block: tuple[int, int]
    every: torch.Tensor | None = None
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
class Grouped:
    """A float32 router as in DeepSeek-V3: each expert has its own chance; the best of the best groups are chosen.

    `chosen` groups, and experts in them, are ranked by chance plus `bias` [E] float32; weights are chances times
    `factor`. `together`: the chances of all experts add up to one.
    """

    router: Linear
    bias: torch.Tensor
    groups: int
    chosen: int
    factor: float
    together: bool = False


@dataclass(frozen=True)
class Experts:
    """A layer's router and experts; each row goes to `each` of them. This rank holds those from `first` on.

    `whole`: a row's weights are made to add up to one; `rounded`: they are rounded to the base's dtype. The biases
    [E, out] may be none. `turns`: gates and what they gate are interleaved, in weight and bias.
    """

    router: Linear | Grouped
    each: int
    first: int
    whole: bool
    rounded: bool
    gate_up: Stack
    down: Stack
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None
    turns: bool = False

    @property
    def count(self) -> int:
        """Number of experts that the router chooses from."""
        return (self.router.router if isinstance(self.router, Grouped) else self.router).out_features


class CodesStruct(ctypes.Structure):
    """codes.h: Codes"""

    _fields_ = (
        ("kind", _INT), ("codes", _POINTER), ("pitch", _INT), ("out", _INT), ("scale_kind", _INT),
        ("scales", _POINTER), ("rows", _INT), ("columns", _INT), ("high", _INT), ("wide", _INT), ("every", _POINTER),
        ("zero_kind", _INT), ("zeros", _POINTER),
    )  # fmt: skip


class StackStruct(ctypes.Structure):
    """experts.h: Stack"""

    _fields_ = (
        ("weight", _POINTER), ("codes", ctypes.POINTER(CodesStruct)), ("in_", _INT), ("out", _INT),
        ("targets", _POINTER), ("target_count", _INT),
    )  # fmt: skip


class GroupedStruct(ctypes.Structure):
    """step.h: Grouped"""

    _fields_ = (
        ("router", LinearStruct), ("together", _INT), ("bias", _POINTER), ("groups", _INT), ("chosen", _INT),
        ("factor", _FLOAT),
    )  # fmt: skip


class ExpertsStruct(ctypes.Structure):
    """step.h: Experts"""

    _fields_ = (
        ("router", LinearStruct), ("grouped", ctypes.POINTER(GroupedStruct)), ("count", _INT), ("each", _INT),
        ("first", _INT), ("held", _INT), ("whole", _INT), ("rounded", _INT), ("gate_up", StackStruct),
        ("down", StackStruct), ("gate_up_bias", _POINTER), ("down_bias", _POINTER), ("turns", _INT),
    )  # fmt: skip


def experts_struct(experts: Experts) -> ExpertsStruct:
    """Return the struct of a layer's experts."""
    router, grouped = experts.router, None
    if isinstance(router, Grouped):
        found = GroupedStruct(
            linear_struct(router.router), router.together, address(router.bias), router.groups, router.chosen,
            router.factor,
        )  # fmt: skip
        router, grouped = router.router, ctypes.pointer(found)
    return ExpertsStruct(
        linear_struct(router), grouped, experts.count, experts.each, experts.first,
        experts.gate_up.shape[0], experts.whole, experts.rounded,
        stack_struct(experts.gate_up), stack_struct(experts.down), address(experts.gate_up_bias),
        address(experts.down_bias), experts.turns,
    )  # fmt: skip


def stack_struct(stack: Stack) -> StackStruct:
    """Return the struct of one linear of a layer's experts."""
    _, high, wide = stack.shape
    codes = (CodesStruct * len(stack.codes))(*map(_codes_struct, stack.codes)) if stack.codes else None
    return StackStruct(address(stack.weight), codes, wide, high, address(stack.targets), stack.targets.shape[0])


def _codes_struct(of: Codes) -> CodesStruct:
    _, high, *row = of.codes.shape
    _, rows, columns = of.scales.shape
    return CodesStruct(
        of.kind, address(of.codes), prod(row) * of.codes.itemsize, high, _SCALES[of.scales.dtype], address(of.scales),
        rows, columns, *of.block, address(of.every), _ZEROS[of.zeros.dtype] if of.zeros is not None else 0,
        address(of.zeros),
    )  # fmt: skip
