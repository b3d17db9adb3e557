"""Linear maps and rotary angles, as passed to the compiled kernels."""

import ctypes
from dataclasses import dataclass

import torch

from mint_contracts.errors import Internal

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class Angles:
    """Cosines and sines of every position, each [positions, half of a head's rotated part] float32."""

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor) -> None:
        self.cos, self.sin = cos.float().contiguous(), sin.float().contiguous()


@dataclass(frozen=True)
class Linear:
    """A linear map packed for the kernels, and the modules of `Slots` whose adapters add to it.

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


def address(tensor: torch.Tensor | None, *, rows_apart: bool = False) -> int | None:
    """Return the address of a tensor's numbers; null for None. Raises Internal if they are not contiguous.

    Kernels would silently read wrong numbers. Those that take a row stride (`rows_apart`) need contiguous rows only.
    """
    if tensor is None:
        return None
    if not tensor.is_contiguous() and not (rows_apart and tensor.stride(-1) == 1):
        layout = f"numbers of {tuple(tensor.shape)} that lie {tensor.stride()} apart"
        raise Internal("kernels", f"were given {layout}, and take them side by side")
    return tensor.data_ptr()


def linear_struct(linear: Linear) -> LinearStruct:
    """Return the struct of a linear map."""
    return LinearStruct(
        address(linear.weight), address(linear.bias), linear.in_features, linear.out_features,
        address(linear.targets), linear.targets.shape[0],
    )  # fmt: skip
