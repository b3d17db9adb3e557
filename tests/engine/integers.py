"""Bases packed in whole numbers as compressed-tensors does, and a naive reference of the weights they hold.

The reference packs numbers one by one as Python integers, which have neither a sign bit nor a limit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.engine.quantised import LINEARS, Tensors, save_two

# What Kimi-K2-Thinking's config.json exempts.
KIMI_IGNORES = (
    "lm_head",
    "re:.*self_attn.*",
    "re:.*shared_experts.*",
    "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
)


@dataclass(frozen=True)
class Layout:
    """How a base is packed, and in which types; `group` columns share a scale, or all if it is None."""

    bits: int
    strategy: str
    group: int | None = None
    symmetric: bool = True
    reordered: bool = False
    packed_zeros: bool = True
    scale_dtype: torch.dtype = torch.bfloat16
    shape_dtype: torch.dtype = torch.int64
    ignore: tuple[str, ...] = ("lm_head",)
    within: str = ""  # a string that the paths of all packed linears contain

    @property
    def told(self) -> dict[str, Any]:
        """The base's quantization_config."""
        return packed_config(
            *self.ignore, num_bits=self.bits, strategy=self.strategy, group_size=self.group, symmetric=self.symmetric,
            actorder="group" if self.reordered else None,
        )  # fmt: skip


def packed_config(*ignore: str, **weights: Any) -> dict[str, Any]:
    """Return a quantization_config as llm-compressor writes it."""
    plain = {"num_bits": 4, "type": "int", "symmetric": True, "dynamic": False, "observer": "minmax"}
    group = {"targets": ["Linear"], "input_activations": None, "weights": plain | weights}
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "ignore": list(ignore), "kv_cache_scheme": None, "config_groups": {"group_0": group},
    }  # fmt: skip


PACKED = {
    "kimi": Layout(4, "group", 8, shape_dtype=torch.int32, ignore=KIMI_IGNORES, within=".experts."),
    "w4a16": Layout(4, "group", 8),
    "w4a16_asymmetric": Layout(4, "group", 8, symmetric=False),
    "w4a16_channel": Layout(4, "channel", symmetric=False, scale_dtype=torch.float16),
    "w4a16_reordered": Layout(4, "group", 8, symmetric=False, reordered=True),
    "w8a16": Layout(8, "channel"),
    "w8a16_group": Layout(8, "group", 16, symmetric=False, packed_zeros=False),  # the layout before version 0.9
    "w8a16_tensor": Layout(8, "tensor", symmetric=False, packed_zeros=False),
}


@dataclass(frozen=True)
class Numbers:
    """A weight in whole numbers with its scales and zero points."""

    values: torch.Tensor  # [O, I]
    scales: torch.Tensor  # [O, G], or [1, G]
    zeros: torch.Tensor  # same shape as `scales`
    groups: torch.Tensor  # [I]

    @property
    def naive(self) -> torch.Tensor:
        """The weight they stand for, [O, I] in float32."""
        zeros, scales = (each.float()[:, self.groups] for each in (self.zeros, self.scales))
        return (self.values.float() - zeros) * scales


def quantise_integers(weight: torch.Tensor, layout: Layout) -> Numbers:
    """Quantise [O, I]. Columns that share a scale are neighbours, or scattered if the layout reorders them."""
    outputs, inputs = weight.shape
    least, most = -(1 << (layout.bits - 1)), (1 << (layout.bits - 1)) - 1
    groups = torch.arange(inputs) // (layout.group or inputs)
    if layout.reordered:
        groups = groups[torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))]
    shape = (1 if layout.strategy == "tensor" else outputs, int(groups.max()) + 1)
    scales, zeros = torch.empty(shape, dtype=layout.scale_dtype), torch.zeros(shape, dtype=torch.int8)
    rows = weight.float().reshape(1, -1) if shape[0] == 1 else weight.float()
    owners = groups.repeat(outputs) if shape[0] == 1 else groups
    for group in range(shape[1]):
        part = rows[:, owners == group]
        spread = part.amax(1) - part.amin(1) if not layout.symmetric else 2 * part.abs().amax(1)
        scales[:, group] = spread / (most - least)
        if not layout.symmetric:
            zeros[:, group] = (least - part.amin(1) / scales[:, group].float()).round().clamp(least, most)
    values = (weight.float() / scales.float()[:, groups] + zeros[:, groups]).round().clamp(least, most)
    return Numbers(values.to(torch.int8), scales, zeros, groups)


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack [O, I] into [O, words], the first number in a word's lowest bits, each offset so that the least is 0."""
    each, rows = 32 // bits, []
    for row in values.tolist():
        words = []
        for at in range(0, len(row), each):
            word = sum((value + (1 << (bits - 1))) << (bits * k) for k, value in enumerate(row[at : at + each]))
            words.append(word - (1 << 32) if word >> 31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def packed_tensors(path: str, numbers: Numbers, layout: Layout) -> Tensors:
    """Return the tensors as a file holds them."""
    scales, zeros = (
        each.reshape(1) if layout.strategy == "tensor" else each for each in (numbers.scales, numbers.zeros)
    )
    found = {
        f"{path}.weight_packed": pack(numbers.values, layout.bits),
        f"{path}.weight_scale": scales,
        f"{path}.weight_shape": torch.tensor(numbers.values.shape, dtype=layout.shape_dtype),
    }
    if not layout.symmetric:
        packed = pack(zeros.T, layout.bits).T.contiguous() if layout.packed_zeros else zeros
        found[f"{path}.weight_zero_point"] = packed
    if layout.reordered:
        found[f"{path}.weight_g_idx"] = numbers.groups.int()
    return found


def save_packed(plain: Path, folder: Path, layout: Layout, *, also: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """Save a copy of a base with packed linears, and one with their dequantised weights in float32.

    Heads and routers are packed too if their paths end with one of `also`.
    """

    def quantise(name: str, tensor: torch.Tensor) -> tuple[Tensors, Tensors]:
        path, _, kind = name.rpartition(".")
        if kind != "weight" or layout.within not in path or not path.endswith((*LINEARS, *also)):
            return {name: tensor}, {name: tensor}
        numbers = quantise_integers(tensor, layout)
        return packed_tensors(path, numbers, layout), {name: numbers.naive}

    return save_two(plain, folder, layout.told, quantise, f"{layout} {also}")
