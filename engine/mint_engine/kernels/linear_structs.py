"""A linear map, and positions' angles, as the compiled kernels are given them."""

import ctypes
from dataclasses import dataclass

import torch

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class Angles:
    """Cosines and sines of every position [positions, half a head's rotated part] float32."""

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor) -> None:
        self.cos, self.sin = cos.float().contiguous(), sin.float().contiguous()


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


NO_TARGETS = torch.empty((0, 4), dtype=torch.int64)


class LinearStruct(ctypes.Structure):
    """product.h: Linear"""

    _fields_ = (
        ("weight", _POINTER), ("bias", _POINTER), ("in_", _INT), ("out", _INT), ("targets", _POINTER),
        ("target_count", _INT),
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
