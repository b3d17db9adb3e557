"""What is done to rows between products, norms and activations, as the compiled kernels are given it."""

import ctypes
from dataclasses import dataclass
from typing import Literal

import torch

from mint_engine.kernels.linear_structs import address

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


@dataclass(frozen=True)
class Norm:
    """The weight of what is rounded before it is weighed, as in Llama; or, `exact` float32 in its place, after it."""

    weight: torch.Tensor | None = None
    exact: torch.Tensor | None = None

    def __bool__(self) -> bool:
        """Whether there is one."""
        return self.weight is not None or self.exact is not None


NO_NORM = Norm()


@dataclass(frozen=True)
class Activation:
    """What gates of networks do to what they gate; `alpha` and `limit` are gpt-oss's, the third kind's."""

    kind: Literal["silu", "gelu_pytorch_tanh", "clamped"]
    alpha: float = 0.0
    limit: float = 0.0


SILU = Activation("silu")
_ACTIVATIONS = "silu", "gelu_pytorch_tanh", "clamped"  # by their numbers


class NormStruct(ctypes.Structure):
    """rows.h: Norm"""

    _fields_ = (("weight", _POINTER), ("exact", _POINTER))


class ActivationStruct(ctypes.Structure):
    """activation.h: Activation"""

    _fields_ = (("kind", _INT), ("alpha", _FLOAT), ("limit", _FLOAT))


def norm_struct(norm: Norm) -> NormStruct:
    """A norm's weight, or that there is none."""
    return NormStruct(address(norm.weight), address(norm.exact))


def activation_struct(of: Activation) -> ActivationStruct:
    """A base's activation."""
    return ActivationStruct(_ACTIVATIONS.index(of.kind), of.alpha, of.limit)
