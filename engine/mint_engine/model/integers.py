"""Linears of integers, several packed in a 32-bit word: compressed-tensors' `pack-quantized`, as in Kimi-K2-Thinking.

Instead of X.weight, [O, I], there are X.weight_packed, [O, I x bits / 32], X.weight_scale and X.weight_shape; if
config.json says so, also X.weight_zero_point, packed along columns, and X.weight_g_idx, the group of each column. A
row's last word may be padded; only X.weight_shape tells.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from mint_contracts.errors import UnsupportedBase
from mint_contracts.quantisation import WORD, Integers
from mint_engine.kernels.expert_structs import Codes, Kind
from mint_engine.model.dequantise import dequantise_integers, unpack_words
from mint_engine.model.scales import ADVICE, FLOATS, UNUSED, described, unpadded
from mint_engine.model.stored import Stored

WORDS = "weight_packed"
_SCALES, _SHAPE, _ZEROS, _ORDER = "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"
_INDICES, _PACKED = ("I32", "I64"), "I32"


def unpacked(tensors: Mapping[str, Stored], files: Integers, dtype: torch.dtype, subject: str) -> dict[str, Stored]:
    """Combine packed parts into X.weight; keep the rest, except what says how to round activations.

    Raises UnsupportedBase if shapes or types do not fit each other; if numbers do not, only when these are read.
    """
    own = (WORDS, _SCALES, _SHAPE, *([] if files.symmetric else [_ZEROS]), *([_ORDER] if files.reordered else []))
    found: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition(".")
        packed = f"{path}.{WORDS}" in tensors
        if kind == WORDS:
            found[f"{path}.weight"] = _weight_of(
                path, {each: tensors.get(f"{path}.{each}") for each in own}, files, dtype, subject
            )
        elif packed and kind not in (*own, *UNUSED, "bias"):
            raise UnsupportedBase(subject, f"has {name}, which is unknown for packed weights of this kind; {ADVICE}")
        elif not packed and kind in (_SCALES, _SHAPE, _ZEROS, _ORDER):
            raise UnsupportedBase(subject, f"has {name}, but not the packed weight that it belongs to; {ADVICE}")
        elif kind not in (*own, *UNUSED):
            found[name] = tensor
    return found


def _weight_of(
    path: str, parts: Mapping[str, Stored | None], files: Integers, dtype: torch.dtype, subject: str
) -> "_Weight":
    for kind, each in parts.items():
        if each is None:
            raise UnsupportedBase(subject, f"lacks {path}.{kind}, which its packed weight needs; {ADVICE}")
    held = {kind: each for kind, each in parts.items() if each is not None}
    words = held[WORDS]
    has, shape = f"has {described(f'{path}.{WORDS}', words)}", list(words.get_shape())
    if len(shape) == 3:
        one = "many experts in one packed tensor, which is not supported; give each expert's linears separately"
        raise UnsupportedBase(subject, f"{has}, {one}, or the model in bfloat16")
    if len(shape) != 2 or 0 in shape or words.get_dtype() != "I32":
        raise UnsupportedBase(subject, f"{has}, which is not a matrix of words of {WORD} bits; {ADVICE}")
    found = _Weight(
        path, subject, files, dtype, words, held[_SCALES], held[_SHAPE], held.get(_ZEROS), held.get(_ORDER)
    )
    for kind, fits in found.fits(found.least, found.most):
        if not fits:
            problem = f"{has}, which {described(f'{path}.{kind}', held[kind])} does not fit"
            block = " x ".join(str(size) for size in found.block(found.most))
            raise UnsupportedBase(
                subject, f"{problem}, in numbers of {files.bits} bits with a scale for every {block}; {ADVICE}"
            )
    return found


@dataclass(frozen=True)
class _Weight:
    path: str
    subject: str
    files: Integers
    dtype: torch.dtype
    words: Stored  # [O, W], along a row, the first number in a word's lowest bits
    scales: Stored  # [O, G], [O] or [1]
    shape: Stored  # O, I
    zeros: Stored | None  # I8 in the shape of scales, or packed in words along columns, [O x bits / 32, G]
    order: Stored | None  # [I]

    def get_shape(self) -> list[int]:
        return list(self._shape)

    def get_dtype(self) -> str:
        return str(self.dtype)

    def block(self, shape: Sequence[int]) -> tuple[int, int]:
        """How many rows and columns of a weight of that shape share a scale."""
        return self.files.rows or shape[0], self.files.columns or shape[1]

    @property
    def most(self) -> tuple[int, int]:
        """The largest shape that its words can hold, according to the headers."""
        outputs, words = self.words.get_shape()
        return outputs, words * self._each

    @property
    def least(self) -> tuple[int, int]:
        """The smallest shape that, with padding, needs as many words."""
        outputs, inputs = self.most
        return outputs, inputs - self._each + 1

    @property
    def _each(self) -> int:
        """Numbers in a word."""
        return WORD // self.files.bits

    @cached_property
    def _shape(self) -> tuple[int, int]:
        """The shape stored beside the words, which is read here. Raises UnsupportedBase if parts do not fit it."""
        (outputs, inputs), most = self.shape[...].tolist(), self.most
        if outputs != most[0] or not self.least[1] <= inputs <= most[1]:
            problem = f"has {self.path}.{_SHAPE} that says {[outputs, inputs]}, but words for {list(most)}"
            raise UnsupportedBase(self.subject, f"{problem}; give the model in bfloat16")
        for kind, fits in self.fits((outputs, inputs), (outputs, inputs)):
            if not fits:
                problem = f"has {self.path}.{_SHAPE} that says {[outputs, inputs]}, which {kind} does not fit"
                raise UnsupportedBase(self.subject, f"{problem}; {ADVICE}")
        return outputs, inputs

    def _grid_of(self, shape: Sequence[int]) -> list[int]:
        """Number of scales in a column and in a row of a weight of that shape."""
        return [-(-size // each) for size, each in zip(shape, self.block(shape), strict=True)]

    def fits(self, least: Sequence[int], most: Sequence[int]) -> Iterator[tuple[str, bool]]:
        """Yield, for each part, whether its type and shape fit a weight of a shape between `least` and `most`."""
        rows, few = self._grid_of(least)
        grids = [[rows, groups] for groups in range(few, self._grid_of(most)[1] + 1)]
        like_scales = [unpadded(each) for each in grids]
        yield _SCALES, unpadded(self.scales.get_shape()) in like_scales and self.scales.get_dtype() in FLOATS
        yield _SHAPE, list(self.shape.get_shape()) == [2] and self.shape.get_dtype() in _INDICES
        if self.zeros is not None:
            kind, shape = self.zeros.get_dtype(), list(self.zeros.get_shape())
            columns = [[-(-rows // self._each), groups] for _, groups in grids]
            packed = self.files.rows == 1 and kind == _PACKED and shape in columns
            yield _ZEROS, packed or (kind == "I8" and unpadded(shape) in like_scales)
        if self.order is not None:
            one = len(self.order.get_shape()) == 1 and self.order.get_dtype() in _INDICES
            yield _ORDER, one and least[1] <= self.order.get_shape()[0] <= most[1]

    @property
    def form(self) -> "_Form":
        """See `quantised_experts.Quantised`."""
        packed = self.zeros is not None and self.zeros.get_dtype() == _PACKED
        return _Form(self.files, self._grid_of(self.most)[0], self.files.columns or self._shape[1], packed)

    def parts(self) -> tuple[Stored, ...]:
        """See `quantised_experts.Quantised`."""
        parts = (self.words, self.scales, self.shape, self.zeros, self.order)
        return tuple(each for each in parts if each is not None)

    def __getitem__(self, part: Any) -> torch.Tensor:
        self.check()
        cuts = (slice(None), slice(None)) if part is ... else (*part, slice(None))[:2]
        rows, columns = (range(size)[cut] for size, cut in zip(self.get_shape(), cuts, strict=True))
        words = self.words[rows.start : rows.stop, columns.start // self._each : -(-columns.stop // self._each)]
        scales, zeros = self._of_rows(self.scales, rows), self._zeros(rows)
        groups: torch.Tensor | int
        if self.order is None:
            groups = self.block(self._shape)[1]
            own = slice(columns.start // groups, -(-columns.stop // groups))
            scales, zeros = scales[..., own], zeros[..., own] if zeros is not None else None
        else:
            groups = self.order[columns.start : columns.stop,].long()[None]
        out = torch.empty((len(rows), len(columns)), dtype=self.dtype)
        dequantise_integers(words[None], self.files.bits, columns.start, scales, zeros, groups, out[None])
        return out

    def _of_rows(self, tensor: Stored, rows: range) -> torch.Tensor:
        """Return scales, or a tensor in their layout, for these rows: [1, rows, G]."""
        one = self._grid_of(self.most)[0] == 1
        return _by_rows(tensor[... if one else slice(rows.start, rows.stop)][None], len(rows), one=one)

    def _zeros(self, rows: range) -> torch.Tensor | None:
        if self.zeros is None:
            return None
        if self.zeros.get_dtype() != _PACKED:
            return self._of_rows(self.zeros, rows)
        first = rows.start // self._each
        start, words = rows.start - first * self._each, self.zeros[first : -(-rows.stop // self._each),]
        return _unpacked_columns(words[None], self.files.bits)[:, start : start + len(rows)]

    def check(self) -> None:
        """See `quantised_experts.Quantised`."""
        count = self._grid_of(self._shape)[1]
        groups = self.order[...] if self.order is not None else torch.zeros(1)
        if not 0 <= int(groups.min()) <= int(groups.max()) < count:
            raise UnsupportedBase(
                self.subject,
                f"has {self.path}.{_ORDER} that names groups other than 0 to {count - 1}; {ADVICE}",
            )


@dataclass(frozen=True)
class _Form:
    """See `quantised_experts.Form`."""

    files: Integers
    rows: int  # rows of scales
    wide: int  # columns that share a scale
    packed: bool  # whether zero points are packed

    def dequantise(self, parts: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See `quantised_experts.Form`."""
        words, scales, zeros, order = self._split(parts)
        outputs, one = out.shape[1], self.rows == 1
        if zeros is not None:
            zeros = (
                _unpacked_columns(zeros, self.files.bits)[:, :outputs]
                if self.packed
                else _by_rows(zeros, outputs, one=one)
            )
        groups = order.long() if order is not None else self.wide
        dequantise_integers(words, self.files.bits, 0, _by_rows(scales, outputs, one=one), zeros, groups, out)

    def codes(self, parts: Sequence[torch.Tensor]) -> Codes | None:
        """See `quantised_experts.Form`. None if columns are reordered."""
        words, scales, zeros, order = self._split(parts)
        if order is not None:
            return None
        if zeros is not None and not self.packed:
            zeros = zeros.reshape(len(zeros), self.rows, -1)
        kind, high = Kind.INT4 if self.files.bits == 4 else Kind.INT8, words.shape[1] if self.rows == 1 else 1
        return Codes(kind, words, scales.reshape(len(scales), self.rows, -1), (high, self.wide), zeros=zeros)

    def _split(
        self, parts: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return words, scales, and, if there are any, zero points and the group of each column."""
        words, scales, _, *others = parts
        zeros = None if self.files.symmetric else others.pop(0)
        return words, scales, zeros, others[0] if others else None


def _by_rows(scales: torch.Tensor, outputs: int, *, one: bool) -> torch.Tensor:
    """Expand scales of N weights, or tensors in their layout, per row or all rows in `one`, to [N, O, G]."""
    return scales.reshape(len(scales), 1 if one else outputs, -1).expand(-1, outputs, -1)


def _unpacked_columns(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack words of columns, [N, W, G], to [N, W x 32 / bits, G]."""
    turned = words.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return unpack_words(turned, bits).transpose(1, 2)
