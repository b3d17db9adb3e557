"""Weights of RMSNorms as the compiled kernels are given them."""

import ctypes
from dataclasses import dataclass

import torch

from mint_engine.kernels.linear_structs import address

_POINTER = ctypes.c_void_p


@dataclass(frozen=True)
class Norm:
    """The weight of what is rounded before it is weighed, as in Llama; or, `exact` float32 in its place, after it."""

    weight: torch.Tensor | None = None
    exact: torch.Tensor | None = None


NO_NORM = Norm()


class NormStruct(ctypes.Structure):
    """rows.h: Norm"""

    _fields_ = (("weight", _POINTER), ("exact", _POINTER))


def norm_struct(norm: Norm) -> NormStruct:
    """A norm's weight, or that there is none."""
    return NormStruct(address(norm.weight), address(norm.exact))
