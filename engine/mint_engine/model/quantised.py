"""Tensors of files in float8 or MXFP4, dequantised as they are read.

Beside what is read of a tensor there is no more in memory than one row of blocks, or one expert, of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mint_contracts.errors import CorruptFile
from mint_contracts.quantisation import MXFP4_BYTES, MXFP4_GROUP, Float8, Quantisation
from mint_engine.model.dequantise import dequantise_float8, dequantise_mxfp4
from mint_engine.model.stored import Stored

_E4M3 = "F8_E4M3"
_FLOATS = ("F32", "BF16", "F16", "F8_E8M0")
_SCALE, _BLOCKS, _SCALES = "_scale_inv", "_blocks", "_scales"


def dequantised(
    tensors: Mapping[str, Stored], quantisation: Quantisation, dtype: torch.dtype, subject: str
) -> dict[str, Stored]:
    """A base's tensors as its model has them, by its names. Raises CorruptFile where scales do not fit."""
    if isinstance(quantisation, Float8):
        return _float8(tensors, (quantisation.rows, quantisation.columns), dtype, subject)
    return _mxfp4(tensors, dtype, subject)


def _float8(
    tensors: Mapping[str, Stored], block: tuple[int, int], dtype: torch.dtype, subject: str
) -> dict[str, Stored]:
    """X.weight with X.weight_scale_inv in one; the rest as it is."""
    found: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        weight = tensors.get(name.removesuffix(_SCALE))
        if name.endswith(_SCALE):
            if weight is None or weight.get_dtype() != _E4M3:
                raise CorruptFile(subject, f"has {name}, but no float8 weight that it scales")
        elif tensor.get_dtype() == _E4M3:
            scales = tensors.get(name + _SCALE)
            if scales is None:
                raise CorruptFile(subject, f"lacks {name}{_SCALE}, the scales of a float8 weight")
            _check_scales(name, tensor, scales, block, subject)
            found[name] = _Float8Weight(tensor, scales, block, dtype)
        else:
            found[name] = tensor
    return found


def _check_scales(name: str, weight: Stored, scales: Stored, block: tuple[int, int], subject: str) -> None:
    shape = weight.get_shape()
    expected = [-(-size // each) for size, each in zip(shape, block, strict=False)]
    if len(shape) != 2 or list(scales.get_shape()) != expected or scales.get_dtype() not in _FLOATS:
        raise CorruptFile(
            subject,
            f"has {_said(name + _SCALE, scales)}, but {_said(name, weight)} in blocks of {list(block)} "
            f"needs {expected} in floating point",
        )


def _mxfp4(tensors: Mapping[str, Stored], dtype: torch.dtype, subject: str) -> dict[str, Stored]:
    """X_blocks with X_scales in one; the rest as it is."""
    found: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        if name.endswith(_BLOCKS):
            stem = name.removesuffix(_BLOCKS)
            scales = tensors.get(stem + _SCALES)
            if scales is None:
                raise CorruptFile(subject, f"lacks {stem}{_SCALES}, the scales of MXFP4 blocks")
            _check_blocks(stem, tensor, scales, subject)
            found[stem] = _Mxfp4Stack(tensor, scales, dtype)
        elif not name.endswith(_SCALES):
            found[name] = tensor
        elif name.removesuffix(_SCALES) + _BLOCKS not in tensors:
            raise CorruptFile(subject, f"has {name}, but no MXFP4 blocks that it scales")
    return found


def _check_blocks(stem: str, blocks: Stored, scales: Stored, subject: str) -> None:
    shape = list(blocks.get_shape())
    bytes_ = blocks.get_dtype() == scales.get_dtype() == "U8"
    if len(shape) != 4 or shape[3] != MXFP4_BYTES or list(scales.get_shape()) != shape[:3] or not bytes_:
        raise CorruptFile(
            subject,
            f"has {_said(stem + _BLOCKS, blocks)} and {_said(stem + _SCALES, scales)}, which are no MXFP4: "
            f"U8 [experts, outputs, inputs/{MXFP4_GROUP}, {MXFP4_BYTES}], and the same less the last",
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
        return dequantise_float8(
            self.weight[slices], self.scales[...], (starts[0], starts[1]), self.block, self.dtype
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
