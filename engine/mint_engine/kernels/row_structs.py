"""Norms and activations, applied to rows between products, as passed to the compiled kernels."""

import ctypes
from dataclasses import dataclass
from typing import Literal

import torch

from mint_engine.kernels.linear_structs import address

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


@dataclass(frozen=True)
class Norm:
    """An RMSNorm's weight: `weight` multiplies the rounded row, as in Llama; `exact` float32 the unrounded one."""

    weight: torch.Tensor | None = None
    exact: torch.Tensor | None = None

    def __bool__(self) -> bool:
        """Whether there is a norm."""
        return self.weight is not None or self.exact is not None


NO_NORM = Norm()


@dataclass(frozen=True)
class Activation:
    """The activation of gated networks; `alpha` and `limit` belong to the third kind, gpt-oss's."""

    kind: Literal["silu", "gelu_pytorch_tanh", "clamped"]
    alpha: float = 0.0
    limit: float = 0.0


SILU = Activation("silu")
ACTIVATIONS = "silu", "gelu_pytorch_tanh", "clamped"  # in the order of their numbers


class NormStruct(ctypes.Structure):
    """rows.h: Norm"""

    _fields_ = (("weight", _POINTER), ("exact", _POINTER))


class ActivationStruct(ctypes.Structure):
    """activation.h: Activation"""

    _fields_ = (("kind", _INT), ("alpha", _FLOAT), ("limit", _FLOAT))


def norm_struct(norm: Norm) -> NormStruct:
    """Return the struct of a norm, which may be none."""
    return NormStruct(address(norm.weight), address(norm.exact))


def activation_struct(of: Activation) -> ActivationStruct:
    """Return the struct of a base's activation."""
    return ActivationStruct(ACTIVATIONS.index(of.kind), of.alpha, of.limit)
