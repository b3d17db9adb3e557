"""Routed experts as the compiled kernels are given them."""

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from math import prod

import torch

from mint_engine.kernels.linear_structs import NO_TARGETS, Linear, LinearStruct, address, linear_struct

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

# Types of scales as codes.h numbers them.
_SCALES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.uint8: 3,
    torch.float8_e8m0fnu: 3,
    torch.float8_e4m3fn: 4,
}
_ZEROS = {torch.int8: 1, torch.int32: 2}  # and of zero points


class Kind(IntEnum):
    """What a weight's codes are: bytes, or halves of bytes with the lower one first; whole numbers less the least."""

    E4M3 = 0
    INT8 = 1
    E2M1 = 2
    INT4 = 3


@dataclass(frozen=True)
class Codes:
    """A linear of all experts that stays quantised: what a code stands for, less its block's zero, times its scale.

    codes [E, out, *] lie row by row; scales [E, rows, columns], each that of a block of so many outputs and inputs.
    `every` [E] float32 is what an expert's are to be multiplied by, where they are e4m3 themselves. `zeros` are int8
    that lie as scales do, or codes of each output in words of int32, one above another in a column: [E, words, *].
    """

    kind: Kind
    codes: torch.Tensor
    scales: torch.Tensor
    block: tuple[int, int]
    every: torch.Tensor | None = None
    zeros: torch.Tensor | None = None


@dataclass(frozen=True)
class Stack:
    """One linear of all of a layer's experts, of `shape` [E, out, in]; targets as of `Linear`.

    Its weight as it lies, or quantised linears that have its outputs one below another.
    """

    shape: torch.Size
    weight: torch.Tensor | None
    codes: tuple[Codes, ...] = ()
    targets: torch.Tensor = NO_TARGETS


@dataclass(frozen=True)
class Grouped:
    """A router in float32 of DeepSeek-V3's kind: each expert's chance by itself, the best of the best groups chosen.

    By chances and `bias` [E] float32 `chosen` of the groups, and their experts; weights are chances times `factor`.
    Where they are `together`, all chances add up to one.
    """

    router: Linear
    bias: torch.Tensor
    groups: int
    chosen: int
    factor: float
    together: bool = False


@dataclass(frozen=True)
class Experts:
    """A layer's router and experts; each row goes to `each` of them. Those held are `first` and the ones behind it.

    Its weights of these are made to add up to one where `whole`, and rounded to the base's dtype where `rounded`.
    Biases [E, out] there may be none. Where gates and what they gate take `turns`, they do in weight and bias.
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
        """Of all that the router chooses from."""
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
    """A layer's experts."""
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
    """A linear of a layer's experts."""
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
