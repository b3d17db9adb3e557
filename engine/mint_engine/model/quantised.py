"""Tensors of files in float8, MXFP8, MXFP4, NVFP4 or packed integers, dequantised as they are read.

Everything else is computed in the engine's dtype: activations are not rounded even if files ask for it, and what they
say of that, e.g. static scales, is not read. Beside the part of a tensor that is read, memory holds only its scales
and a band of its rows, or one expert.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mint_contracts.errors import UnsupportedBase
from mint_contracts.quantisation import (
    MIXED,
    MXFP4_BYTES,
    MXFP4_GROUP,
    MXFP8,
    NVFP4_GROUP,
    Float8,
    Integers,
    Mxfp4,
    Nvfp4,
    Quantisation,
)
from mint_engine.kernels.expert_structs import Codes, Kind
from mint_engine.model.dequantise import dequantise_float8, dequantise_mxfp4, dequantise_nvfp4
from mint_engine.model.integers import unpacked
from mint_engine.model.scales import ADVICE, FLOATS, UNUSED, described, unpadded
from mint_engine.model.stored import Stored

_E4M3, _BYTE = "F8_E4M3", "U8"
# Suffixes of the names of a weight's scales, by which it is multiplied in either case.
_SCALES = ("_scale_inv", "_scale")
_WEIGHT_SCALES = tuple(f"weight{end}" for end in _SCALES)
_NVFP4_SCALES = ("weight_scale", "weight_scale_2")  # multiplied with each other
_MXFP4_BLOCKS, _MXFP4_SCALES = "_blocks", "_scales"


def dequantised(
    tensors: Mapping[str, Stored], quantisation: Quantisation, dtype: torch.dtype, subject: str
) -> dict[str, Stored]:
    """Return a base's tensors dequantised, by their names in the model.

    Raises UnsupportedBase if scales do not fit, and for experts in one float8 tensor: getting intact files again
    would not change these.
    """
    if isinstance(quantisation, Mxfp4):
        return _mxfp4(tensors, dtype, subject)
    if isinstance(quantisation, Integers):
        return unpacked(tensors, quantisation, dtype, subject)
    return _scaled(tensors, quantisation, dtype, subject)


def _scaled(
    tensors: Mapping[str, Stored], quantisation: Float8 | Nvfp4, dtype: torch.dtype, subject: str
) -> dict[str, Stored]:
    """Combine X.weight with its scales; keep the rest, except what says how to round activations."""
    found: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition(".")
        beside = tensors.get(f"{path}.weight")
        own = _scales_in(beside.get_dtype() if beside is not None else "", quantisation)
        if kind in (*_WEIGHT_SCALES, *_NVFP4_SCALES) and not own:
            raise UnsupportedBase(subject, f"has {name}, but not the quantised weight that it scales; {ADVICE}")
        if kind in own or kind in UNUSED:
            continue
        if own and kind not in ("weight", "bias"):
            raise UnsupportedBase(subject, f"has {name}, which is unknown for quantised weights; {ADVICE}")
        if tensor.get_dtype() == _E4M3:
            schemes = (quantisation,) if isinstance(quantisation, Float8) else MIXED
            tensor = _Float8Weight(tensor, *_scales_of(name, tensors, schemes, subject), dtype)
        elif own and kind == "weight":
            tensor = _Nvfp4Weight(tensor, *_scales_of_nvfp4(path, tensors, subject), dtype)
        found[name] = tensor
    return found


def _scales_in(dtype: str, quantisation: Float8 | Nvfp4) -> tuple[str, ...]:
    """Return the names of scales beside a weight of that type; none for a weight that is not quantised."""
    if dtype == _E4M3:
        return _WEIGHT_SCALES
    return _NVFP4_SCALES if dtype == _BYTE and isinstance(quantisation, Nvfp4) else ()


def _scales_of(
    name: str, tensors: Mapping[str, Stored], schemes: Sequence[Float8], subject: str
) -> tuple[Stored, tuple[int, int]]:
    """Return a float8 weight's scales, and how many rows and columns share one: by the first scheme that fits."""
    weight, shape = tensors[name], list(tensors[name].get_shape())
    if len(shape) == 3:
        raise UnsupportedBase(
            subject,
            f"has {described(name, weight)}, many experts in one float8 tensor, which is not supported; "
            "give each expert's linears separately, or the model in bfloat16",
        )
    if len(shape) != 2:
        raise UnsupportedBase(subject, f"has {described(name, weight)}, which is not a matrix; {ADVICE}")
    names = [name + end for end in _SCALES if name + end in tensors]
    if not names:
        lacking = " or ".join(name + end for end in _SCALES)
        raise UnsupportedBase(subject, f"lacks {lacking}, the scales of a float8 weight; {ADVICE}")
    scales, needs = tensors[names[0]], []
    for scheme in schemes:
        block = (scheme.rows or shape[0], scheme.columns or shape[1])
        expected = [-(-size // each) for size, each in zip(shape, block, strict=True)]
        kinds = (*FLOATS, _BYTE) if scheme == MXFP8 else FLOATS
        if unpadded(scales.get_shape()) == unpadded(expected) and scales.get_dtype() in kinds:
            return scales, block
        needs.append(f"with a scale for every {block[0]} x {block[1]} needs {expected} of {' or '.join(kinds)}")
    message = f"has {described(names[0], scales)}, but {described(name, weight)} {', or '.join(needs)}; {ADVICE}"
    raise UnsupportedBase(subject, message)


def _scales_of_nvfp4(path: str, tensors: Mapping[str, Stored], subject: str) -> tuple[Stored, Stored]:
    """Return an NVFP4 weight's scales: those of groups, and that of the complete weight."""
    name, (scales_name, all_name) = f"{path}.weight", (f"{path}.{each}" for each in _NVFP4_SCALES)
    weight, scales, of_all = tensors[name], tensors.get(scales_name), tensors.get(all_name)
    if scales is None or of_all is None:
        lacking = scales_name if scales is None else all_name
        raise UnsupportedBase(subject, f"lacks {lacking}, scales of an NVFP4 weight; {ADVICE}")
    shape = list(weight.get_shape())
    expected = [shape[0], 2 * shape[-1] // NVFP4_GROUP]
    fits = len(shape) == 2 and 2 * shape[1] % NVFP4_GROUP == 0 and list(scales.get_shape()) == expected
    if not fits or scales.get_dtype() != _E4M3 or unpadded(of_all.get_shape()) or of_all.get_dtype() not in FLOATS:
        raise UnsupportedBase(
            subject,
            f"has {described(name, weight)}, {described(scales_name, scales)} and {described(all_name, of_all)}, "
            f"which are not NVFP4: U8 [outputs, inputs/2], {_E4M3} [outputs, inputs/{NVFP4_GROUP}], and one number; "
            f"{ADVICE}",
        )
    return scales, of_all


def _mxfp4(tensors: Mapping[str, Stored], dtype: torch.dtype, subject: str) -> dict[str, Stored]:
    """Combine X_blocks with X_scales; keep the rest."""
    found: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        if name.endswith(_MXFP4_BLOCKS):
            stem = name.removesuffix(_MXFP4_BLOCKS)
            scales = tensors.get(stem + _MXFP4_SCALES)
            if scales is None:
                raise UnsupportedBase(subject, f"lacks {stem}{_MXFP4_SCALES}, the scales of MXFP4 blocks; {ADVICE}")
            _check_blocks(stem, tensor, scales, subject)
            found[stem] = _Mxfp4Stack(tensor, scales, dtype)
        elif not name.endswith(_MXFP4_SCALES):
            found[name] = tensor
        elif name.removesuffix(_MXFP4_SCALES) + _MXFP4_BLOCKS not in tensors:
            raise UnsupportedBase(subject, f"has {name}, but not the MXFP4 blocks that it scales; {ADVICE}")
    return found


def _check_blocks(stem: str, blocks: Stored, scales: Stored, subject: str) -> None:
    shape = list(blocks.get_shape())
    bytes_ = blocks.get_dtype() == scales.get_dtype() == "U8"
    if len(shape) != 4 or shape[3] != MXFP4_BYTES or list(scales.get_shape()) != shape[:3] or not bytes_:
        raise UnsupportedBase(
            subject,
            f"has {described(stem + _MXFP4_BLOCKS, blocks)} and {described(stem + _MXFP4_SCALES, scales)}, "
            f"which are not MXFP4: U8 [experts, outputs, inputs/{MXFP4_GROUP}, {MXFP4_BYTES}], and the same less the "
            f"last; {ADVICE}",
        )


@dataclass(frozen=True)
class _Float8:
    """See `quantised_experts.Form`."""

    rows: int  # of the complete weight
    block: tuple[int, int]

    def dequantise(self, parts: Sequence[torch.Tensor], out: torch.Tensor, start: tuple[int, int] = (0, 0)) -> None:
        """See `quantised_experts.Form`; also takes parts of weights from `start`, with all of their scales."""
        weights, scales = parts
        dequantise_float8(weights, self._by_blocks(scales), start, self.block, out)

    def codes(self, parts: Sequence[torch.Tensor]) -> Codes | None:
        """See `quantised_experts.Form`."""
        weights, scales = parts
        return Codes(Kind.E4M3, weights, self._by_blocks(scales), self.block)

    def _by_blocks(self, scales: torch.Tensor) -> torch.Tensor:
        return scales.reshape(len(scales), -(-self.rows // self.block[0]), -1)


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

    @property
    def form(self) -> _Float8:
        """See `quantised_experts.Quantised`."""
        return _Float8(self.get_shape()[0], self.block)

    def parts(self) -> tuple[Stored, ...]:
        """See `quantised_experts.Quantised`."""
        return self.weight, self.scales

    def check(self) -> None:
        """Do nothing: any numbers fit each other."""

    def __getitem__(self, part: Any) -> torch.Tensor:
        slices = (slice(None), slice(None)) if part is ... else (*part, slice(None))[:2]
        weight, (top, left) = self.weight[slices], (each.start or 0 for each in slices)
        out = torch.empty(weight.shape, dtype=self.dtype)
        self.form.dequantise((weight[None], self.scales[...][None]), out[None], (top, left))
        return out


@dataclass(frozen=True)
class _Nvfp4:
    """See `quantised_experts.Form`."""

    def dequantise(self, parts: Sequence[torch.Tensor], out: torch.Tensor, left: int = 0) -> None:
        """See `quantised_experts.Form`; also takes parts of weights that begin at the `left`-th column."""
        bytes_, scales, of_all = parts
        dequantise_nvfp4(bytes_, scales.float() * of_all.reshape(-1, 1, 1).float(), left, out)

    def codes(self, parts: Sequence[torch.Tensor]) -> Codes | None:
        """See `quantised_experts.Form`."""
        bytes_, scales, of_all = parts
        return Codes(Kind.E2M1, bytes_, scales, (1, NVFP4_GROUP), of_all.flatten().float())


@dataclass(frozen=True)
class _Nvfp4Weight:
    weight: Stored  # [O, I/2]
    scales: Stored  # [O, I/16]
    of_all: Stored
    dtype: torch.dtype

    form = _Nvfp4()  # see `quantised_experts.Quantised`

    def get_shape(self) -> list[int]:
        outputs, half = self.weight.get_shape()
        return [outputs, 2 * half]

    def get_dtype(self) -> str:
        return str(self.dtype)

    def parts(self) -> tuple[Stored, ...]:
        """See `quantised_experts.Quantised`."""
        return self.weight, self.scales, self.of_all

    def check(self) -> None:
        """Do nothing: any numbers fit each other."""

    def __getitem__(self, part: Any) -> torch.Tensor:
        rows, columns = (slice(None), slice(None)) if part is ... else (*part, slice(None))[:2]
        inputs = range(self.get_shape()[1])[columns]
        bytes_, groups = (slice(inputs.start // each, -(-inputs.stop // each)) for each in (2, NVFP4_GROUP))
        weight, scales = self.weight[rows, bytes_], self.scales[rows, groups]
        out = torch.empty((weight.shape[0], len(inputs)), dtype=self.dtype)
        self.form.dequantise((weight[None], scales[None], self.of_all[...]), out[None], inputs.start)
        return out


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

    def experts(self) -> "list[_Mxfp4Expert]":
        """See `quantised_experts.QuantisedStack`."""
        return [
            _Mxfp4Expert(_One(self.blocks, at), _One(self.scales, at), self.dtype)
            for at in range(self.get_shape()[0])
        ]

    def __getitem__(self, part: Any) -> torch.Tensor:
        held = self.experts()[slice(None) if part is ... else part[0]]
        out = torch.empty((len(held), *self.get_shape()[1:]), dtype=self.dtype)
        for at, expert in enumerate(held):
            out[at] = expert[...]
        return out


@dataclass(frozen=True)
class _Mxfp4:
    """See `quantised_experts.Form`. Matrices are [I, O], as in transformers' products."""

    def dequantise(self, parts: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See `quantised_experts.Form`."""
        blocks, scales = parts
        dequantise_mxfp4(blocks, scales, out.transpose(1, 2))

    def codes(self, parts: Sequence[torch.Tensor]) -> Codes | None:
        """See `quantised_experts.Form`."""
        blocks, scales = parts
        return Codes(Kind.E2M1, blocks, scales, (1, MXFP4_GROUP))


@dataclass(frozen=True)
class _Mxfp4Expert:
    blocks: Stored  # [O, I/32, 16]
    scales: Stored  # [O, I/32]
    dtype: torch.dtype

    form = _Mxfp4()  # see `quantised_experts.Quantised`

    def get_shape(self) -> list[int]:
        outputs, groups, _ = self.blocks.get_shape()
        return [groups * MXFP4_GROUP, outputs]

    def get_dtype(self) -> str:
        return str(self.dtype)

    def parts(self) -> tuple[Stored, ...]:
        """See `quantised_experts.Quantised`."""
        return self.blocks, self.scales

    def check(self) -> None:
        """Do nothing: any numbers fit each other."""

    def __getitem__(self, part: Any) -> torch.Tensor:
        out = torch.empty(self.get_shape(), dtype=self.dtype)
        self.form.dequantise([each[...][None] for each in self.parts()], out[None])
        return out[part]


@dataclass(frozen=True)
class _One:
    """One expert's tensor in a tensor of all experts."""

    tensor: Stored
    at: int

    def get_shape(self) -> list[int]:
        return list(self.tensor.get_shape()[1:])

    def get_dtype(self) -> str:
        return self.tensor.get_dtype()

    def __getitem__(self, part: Any) -> torch.Tensor:
        return self.tensor[self.at : self.at + 1,][0][part]
