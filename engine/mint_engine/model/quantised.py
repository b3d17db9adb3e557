"""Tensors of files in float8, MXFP8 or MXFP4, dequantised as they are read.

All else is then computed in the engine's dtype: activations are not rounded as such files may ask for, and what they
say of that, e.g. static scales, is not read. Beside what is read of a tensor there is no more in memory than its
scales and a band of its rows, or one expert.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mint_contracts.errors import CorruptFile
from mint_contracts.quantisation import MXFP4_BYTES, MXFP4_GROUP, MXFP8, Float8, Quantisation
from mint_engine.model.dequantise import dequantise_float8, dequantise_mxfp4, powers_of_two
from mint_engine.model.stored import Stored

_E4M3, _BYTE = "F8_E4M3", "U8"
_FLOATS = ("F32", "BF16", "F16", "F8_E8M0")
# What follows a weight's name in that of its scales: either way it is to be multiplied by them.
_SCALES = ("_scale_inv", "_scale")
_WEIGHT_SCALES = tuple(f"weight{end}" for end in _SCALES)
# For activations and for the cache, which are not rounded here.
_UNUSED = ("input_scale", "input_scale_ub", "activation_scale", "output_scale", "q_scale", "k_scale", "v_scale")
_MXFP4_BLOCKS, _MXFP4_SCALES = "_blocks", "_scales"
_ADVICE = "get its files again, or give the model in bfloat16"


def dequantised(
    tensors: Mapping[str, Stored], quantisation: Quantisation, dtype: torch.dtype, subject: str
) -> dict[str, Stored]:
    """A base's tensors as its model has them, by its names. Raises CorruptFile where scales do not fit."""
    if isinstance(quantisation, Float8):
        return _float8(tensors, quantisation, dtype, subject)
    return _mxfp4(tensors, dtype, subject)


def _float8(
    tensors: Mapping[str, Stored], quantisation: Float8, dtype: torch.dtype, subject: str
) -> dict[str, Stored]:
    """X.weight with its scales in one; the rest as it is, less what says how to round activations."""
    found: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition(".")
        beside = tensors.get(f"{path}.weight")
        scaled = beside is not None and beside.get_dtype() == _E4M3
        scales = kind in _WEIGHT_SCALES
        if scales and not scaled:
            raise CorruptFile(subject, f"has {name}, but no float8 weight that it scales; {_ADVICE}")
        if scales or kind in _UNUSED:
            continue
        if scaled and kind not in ("weight", "bias"):
            raise CorruptFile(subject, f"has {name}, which no float8 weight is known to have; {_ADVICE}")
        if tensor.get_dtype() == _E4M3:
            tensor = _Float8Weight(tensor, *_scales_of(name, tensors, quantisation, subject), dtype)
        found[name] = tensor
    return found


def _scales_of(
    name: str, tensors: Mapping[str, Stored], quantisation: Float8, subject: str
) -> tuple[Stored, tuple[int, int]]:
    """The scales of a float8 weight, and how many of its rows and columns have one together."""
    weight, shape = tensors[name], list(tensors[name].get_shape())
    if len(shape) != 2:
        raise CorruptFile(subject, f"has {_said(name, weight)}, which is no matrix; {_ADVICE}")
    names = [name + end for end in _SCALES if name + end in tensors]
    if not names:
        lacking = " or ".join(name + end for end in _SCALES)
        raise CorruptFile(subject, f"lacks {lacking}, the scales of a float8 weight; {_ADVICE}")
    block = (quantisation.rows or shape[0], quantisation.columns or shape[1])
    expected = [-(-size // each) for size, each in zip(shape, block, strict=True)]
    scales, kinds = tensors[names[0]], (*_FLOATS, _BYTE) if quantisation == MXFP8 else _FLOATS
    if _unpadded(scales.get_shape()) != _unpadded(expected) or scales.get_dtype() not in kinds:
        raise CorruptFile(
            subject,
            f"has {_said(names[0], scales)}, but {_said(name, weight)} with a scale for every "
            f"{block[0]} x {block[1]} needs {expected} of {' or '.join(kinds)}; {_ADVICE}",
        )
    return scales, block


def _unpadded(shape: Sequence[int]) -> list[int]:
    """Without ones at its end: a scale a tensor is of [], [1] or [1, 1], a scale a row of [O] or [O, 1]."""
    found = list(shape)
    while found and found[-1] == 1:
        found.pop()
    return found


def _mxfp4(tensors: Mapping[str, Stored], dtype: torch.dtype, subject: str) -> dict[str, Stored]:
    """X_blocks with X_scales in one; the rest as it is."""
    found: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        if name.endswith(_MXFP4_BLOCKS):
            stem = name.removesuffix(_MXFP4_BLOCKS)
            scales = tensors.get(stem + _MXFP4_SCALES)
            if scales is None:
                raise CorruptFile(subject, f"lacks {stem}{_MXFP4_SCALES}, the scales of MXFP4 blocks; {_ADVICE}")
            _check_blocks(stem, tensor, scales, subject)
            found[stem] = _Mxfp4Stack(tensor, scales, dtype)
        elif not name.endswith(_MXFP4_SCALES):
            found[name] = tensor
        elif name.removesuffix(_MXFP4_SCALES) + _MXFP4_BLOCKS not in tensors:
            raise CorruptFile(subject, f"has {name}, but no MXFP4 blocks that it scales; {_ADVICE}")
    return found


def _check_blocks(stem: str, blocks: Stored, scales: Stored, subject: str) -> None:
    shape = list(blocks.get_shape())
    bytes_ = blocks.get_dtype() == scales.get_dtype() == "U8"
    if len(shape) != 4 or shape[3] != MXFP4_BYTES or list(scales.get_shape()) != shape[:3] or not bytes_:
        raise CorruptFile(
            subject,
            f"has {_said(stem + _MXFP4_BLOCKS, blocks)} and {_said(stem + _MXFP4_SCALES, scales)}, "
            f"which are no MXFP4: U8 [experts, outputs, inputs/{MXFP4_GROUP}, {MXFP4_BYTES}], and the same less the "
            f"last; {_ADVICE}",
        )


@dataclass(frozen=True)
class _Float8Weight:
    weight: Stored  # [O, I]
    scales: Stored
    block: tuple[int, int]
    dtype: torch.dtype

    def get_shape(self) -> list[int]:
        return list(self.weight.get_shape())

    def get_dtype(self) -> str:
        return str(self.dtype)

    def __getitem__(self, part: Any) -> torch.Tensor:
        slices = (slice(None), slice(None)) if part is ... else (*part, slice(None))[:2]
        starts = [each.start or 0 for each in slices]
        scales = self.scales[...]
        scales = powers_of_two(scales) if scales.dtype == torch.uint8 else scales.float()
        rows = -(-self.get_shape()[0] // self.block[0])
        return dequantise_float8(
            self.weight[slices], scales.reshape(rows, -1), (starts[0], starts[1]), self.block, self.dtype
        )


@dataclass(frozen=True)
class _Mxfp4Stack:
    blocks: Stored  # [E, O, I/32, 16]
    scales: Stored  # [E, O, I/32]
    dtype: torch.dtype

    def get_shape(self) -> list[int]:
        experts, outputs, groups, _ = self.blocks.get_shape()
        return [experts, groups * MXFP4_GROUP, outputs]

    def get_dtype(self) -> str:
        return str(self.dtype)

    def __getitem__(self, part: Any) -> torch.Tensor:
        experts, *shape = self.get_shape()
        held = range(experts)[slice(None) if part is ... else part[0]]
        out = torch.empty((len(held), *shape), dtype=self.dtype)
        for at, expert in enumerate(held):
            one = slice(expert, expert + 1)
            out[at] = dequantise_mxfp4(self.blocks[one][0], self.scales[one][0], self.dtype)
        return out


def _said(name: str, tensor: Stored) -> str:
    return f"{name} of {tensor.get_dtype()} {list(tensor.get_shape())}"
