"""What the compiled kernels are given, as C++ lays it out: each struct here mirrors the one of that name there.

Structs hold addresses alone: whoever makes one keeps its tensors alive.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import prod

import torch

from mint_engine.residency.arrival import Arrival
from mint_engine.residency.slots import Slots

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


class Angles:
    """Cosines and sines of every position [positions, half a head's rotated part] float32."""

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor) -> None:
        self.cos, self.sin = cos.float().contiguous(), sin.float().contiguous()


class HeadNorms:
    """RMSNorm weights [D] of each query and key head, where a family has them."""

    def __init__(self, query: torch.Tensor | None, key: torch.Tensor | None, epsilon: float) -> None:
        self.query, self.key, self.epsilon = query, key, epsilon


NO_NORMS = HeadNorms(None, None, 0.0)
NO_TARGETS = torch.empty((0, 4), dtype=torch.int64)


@dataclass(frozen=True)
class Linear:
    """A linear map laid out for the kernels, and the modules of `Slots` whose adapters add to it.

    targets [p, 4] int64: module, first column of the output, in, out.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None  # [out]
    in_features: int
    out_features: int
    targets: torch.Tensor


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
    """

    router: Linear
    bias: torch.Tensor
    groups: int
    chosen: int
    factor: float


@dataclass(frozen=True)
class Experts:
    """A layer's router and experts; each row goes to `each` of them. Those held are `first` and the ones behind it.

    Its weights of these are made to add up to one where `whole`, and rounded to the base's dtype where `rounded`.
    """

    router: Linear | Grouped
    each: int
    first: int
    whole: bool
    rounded: bool
    gate_up: Stack
    down: Stack

    @property
    def count(self) -> int:
        """Of all that the router chooses from."""
        return (self.router.router if isinstance(self.router, Grouped) else self.router).out_features


class LinearStruct(ctypes.Structure):
    """product.h: Linear"""

    _fields_ = (
        ("weight", _POINTER), ("bias", _POINTER), ("in_", _INT), ("out", _INT), ("targets", _POINTER),
        ("target_count", _INT),
    )  # fmt: skip


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
        ("router", LinearStruct), ("bias", _POINTER), ("groups", _INT), ("chosen", _INT), ("factor", _FLOAT),
    )  # fmt: skip


class ExpertsStruct(ctypes.Structure):
    """step.h: Experts"""

    _fields_ = (
        ("router", LinearStruct), ("grouped", ctypes.POINTER(GroupedStruct)), ("count", _INT), ("each", _INT),
        ("first", _INT), ("held", _INT), ("whole", _INT), ("rounded", _INT), ("gate_up", StackStruct),
        ("down", StackStruct),
    )  # fmt: skip


class HeadsStruct(ctypes.Structure):
    """rows.h: Heads"""

    _fields_ = (
        ("heads", _INT), ("kv_heads", _INT), ("dim", _INT), ("cos", _POINTER), ("sin", _POINTER), ("half", _INT),
        ("q_norm", _POINTER), ("k_norm", _POINTER), ("epsilon", _FLOAT),
    )  # fmt: skip


class LayerStruct(ctypes.Structure):
    """step.h: Layer"""

    _fields_ = (
        ("attention_norm", _POINTER), ("qkv", LinearStruct), ("output", LinearStruct), ("mlp_norm", _POINTER),
        ("gate_up", LinearStruct), ("down", LinearStruct), ("experts", ctypes.POINTER(ExpertsStruct)),
        ("heads", HeadsStruct), ("pool", _POINTER),
    )  # fmt: skip


class BaseStruct(ctypes.Structure):
    """step.h: Base"""

    _fields_ = (
        ("embedding", _POINTER), ("layers", ctypes.POINTER(LayerStruct)), ("layer_count", _INT), ("norm", _POINTER),
        ("head", LinearStruct), ("scale", _FLOAT), ("epsilon", _FLOAT),
    )  # fmt: skip


class SlotsStruct(ctypes.Structure):
    """lora.h: Slots"""

    _fields_ = (
        ("memory", _POINTER), ("width", _INT), ("places", _POINTER), ("ranks", _POINTER), ("scalings", _POINTER),
        ("count", _INT),
    )  # fmt: skip


class ArrivalStruct(ctypes.Structure):
    """arrival.h: Arrival"""

    _fields_ = (("come", _POINTER), ("needed", _POINTER), ("patience_s", _FLOAT))


class StepStruct(ctypes.Structure):
    """step.h: Step"""

    _fields_ = (
        ("rows", _INT), ("tokens", _POINTER), ("positions", _POINTER), ("places", _POINTER),
        ("stretches", _POINTER), ("stretch_count", _INT), ("tables", _POINTER), ("items", _POINTER),
        ("item_count", _INT), ("keep", _POINTER), ("kept", _INT), ("logits", _POINTER), ("logits_width", _INT),
        ("routes", _POINTER), ("weights", _POINTER), ("arrival", ctypes.POINTER(ArrivalStruct)),
    )  # fmt: skip


class RoomStruct(ctypes.Structure):
    """step.h: Room"""

    _fields_ = (
        ("hidden", _POINTER), ("x", _POINTER), ("delta", _POINTER), ("wide", _POINTER), ("narrow", _POINTER),
        ("sums", _POINTER), ("middle", _POINTER), ("paired", _POINTER), ("paired_wide", _POINTER),
        ("paired_narrow", _POINTER), ("wide_width", _INT), ("narrow_width", _INT), ("middle_width", _INT),
    )  # fmt: skip


class PeersStruct(ctypes.Structure):
    """peers.h: Peers"""

    _fields_ = (
        ("count", _INT), ("rank", _INT), ("threads", _INT), ("meeting", _POINTER), ("sums", _POINTER),
        ("size", _INT), ("patience_s", _FLOAT),
    )  # fmt: skip


def address(tensor: torch.Tensor | None) -> int | None:
    """Where a tensor's numbers begin; null for none."""
    return tensor.data_ptr() if tensor is not None else None


def linear_struct(linear: Linear) -> LinearStruct:
    """A linear map."""
    return LinearStruct(
        address(linear.weight), address(linear.bias), linear.in_features, linear.out_features,
        address(linear.targets), linear.targets.shape[0],
    )  # fmt: skip


def experts_struct(experts: Experts) -> ExpertsStruct:
    """A layer's experts."""
    router, grouped = experts.router, None
    if isinstance(router, Grouped):
        found = GroupedStruct(
            linear_struct(router.router), address(router.bias), router.groups, router.chosen, router.factor
        )
        router, grouped = router.router, ctypes.pointer(found)
    return ExpertsStruct(
        linear_struct(router), grouped, experts.count, experts.each, experts.first,
        experts.gate_up.shape[0], experts.whole, experts.rounded,
        stack_struct(experts.gate_up), stack_struct(experts.down),
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


def heads_struct(heads: tuple[int, int, int], angles: Angles, norms: HeadNorms) -> HeadsStruct:
    """`heads` is (query heads, key/value heads, head size)."""
    return HeadsStruct(
        *heads, address(angles.cos), address(angles.sin), angles.cos.shape[1], address(norms.query),
        address(norms.key), norms.epsilon,
    )  # fmt: skip


def slots_struct(slots: Slots) -> SlotsStruct:
    """The slots' memory and tables, which stay where they are."""
    return SlotsStruct(
        address(slots.memory), slots.memory.shape[1], address(slots.places), address(slots.ranks),
        address(slots.scalings), slots.count,
    )  # fmt: skip


def arrival_struct(
    arrival: Arrival | None, needed: torch.Tensor | None, patience_s: float
) -> "ctypes._Pointer[ArrivalStruct] | None":
    """How an adapter comes, and what each layer needs of it [layers] int64; null for one that is there."""
    if arrival is None:
        return None
    return ctypes.pointer(ArrivalStruct(arrival.address, address(needed), patience_s))


def room_struct(room: Sequence[torch.Tensor], paired: Sequence[torch.Tensor]) -> RoomStruct:
    """Tensors [rows, ...] in which a step's numbers lie: hidden, x, delta, wide, narrow, sums, middle.

    And of its pairs with experts, [pairs, ...], where there are any: paired, paired_wide, paired_narrow.
    """
    wide, narrow, _, middle = (each.shape[1] for each in room[-4:])
    return RoomStruct(*map(address, room), *map(address, paired or (None,) * 3), wide, narrow, middle)
