"""The base's products of stacked experts, without adapters: rows sorted by expert, each by its expert's weight.

Letters in shapes: P rows, one for each expert of each token, E experts, in and out of one of their linears.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from mint_engine.kernels.expert_structs import Stack
from mint_engine.kernels.library import Kernels
from mint_engine.model.expert_lora import Pairs
from mint_engine.model.quantised_experts import QuantisedWeight, by_expert, by_group

_STRIP = 64  # inputs that are transposed at once: a third of the time that transposing all at once takes


def lay_rows(experts: Any) -> None:
    """Change weights [E, in, out], as in gpt-oss, to output-major layout, which kernels read, in their own memory."""
    for name in ("gate_up_proj", "down_proj"):
        weight: torch.Tensor = getattr(experts, name).data
        count, wide, high = weight.shape
        if weight.is_contiguous():
            turned = weight.new_empty(high, wide)
            for each in weight:
                for at in range(0, wide, _STRIP):
                    turned[:, at : at + _STRIP].copy_(each[at : at + _STRIP].t())
                each.view(high, wide).copy_(turned)
            getattr(experts, name).data = weight.view(count, high, wide).transpose(1, 2)


def rows_of(experts: Any, name: str) -> torch.Tensor:
    """Return an unquantised linear of all experts in output-major layout, [E, out, in], in its own memory."""
    if not experts.is_transposed:
        weight: torch.Tensor = getattr(experts, name)
        return weight
    lay_rows(experts)
    turned: torch.Tensor = getattr(experts, name).transpose(1, 2)
    return turned


def in_one(experts: Any) -> bool:
    """Whether a GPU multiplies all pairs in one call for each linear, for which the host need not know bounds."""

    def taken(weight: torch.Tensor | QuantisedWeight) -> bool:
        if isinstance(weight, torch.Tensor):
            return weight.device.type == "cuda" and _grouped(weight)
        return weight.product is not None

    return not torch.is_grad_enabled() and taken(experts.gate_up_proj) and taken(experts.down_proj)


def multiply(experts: Any, name: str, x: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Multiply each pair's row of x [P, in] by its expert's weight -> [P, out].

    A bias is added to the rounded products, as in transformers.
    """
    y = _product(experts, getattr(experts, name), x, pairs)
    if not experts.has_bias:
        return y
    bias: torch.Tensor = getattr(experts, f"{name}_bias")
    return y.add_(bias.index_select(0, pairs.experts))


def add_bias(y: torch.Tensor, bias: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
    """y [P, out] += each row's expert's bias [E, out], in place."""
    counts = torch.tensor(bounds).diff().to(y.device)
    return y.add_(bias.repeat_interleave(counts, dim=0, output_size=y.shape[0]))


def _product(experts: Any, weight: torch.Tensor | QuantisedWeight, x: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    kernels: Kernels | None = experts.mint_modules.kernels
    if torch.is_grad_enabled():
        return multiply_each(weight, x, pairs.bounds, transposed=experts.is_transposed)
    if isinstance(weight, torch.Tensor):
        rows = weight.transpose(1, 2) if experts.is_transposed else weight  # [E, out, in]
        if kernels is not None:
            return kernels.multiply_experts(x, Stack(rows.shape, rows), pairs.bounds)
        if not _grouped(weight):
            return multiply_each(weight, x, pairs.bounds, transposed=experts.is_transposed)
        return functional.grouped_mm(x, rows.transpose(1, 2), offs=pairs.ends)
    if weight.product is not None:
        return weight.product.multiply(x, pairs.ends)
    if kernels is None:
        return multiply_each(weight, x, pairs.bounds, transposed=experts.is_transposed)
    if (stack := weight.coded()) is not None:
        return kernels.multiply_experts(x, stack, pairs.bounds)
    groups = by_group(weight, pairs.bounds)
    return torch.cat([kernels.multiply_experts(x[rows], Stack(some.shape, some), own) for rows, own, some in groups])


def _grouped(weight: torch.Tensor) -> bool:
    """Whether torch multiplies all experts' rows in one call: if rows are 16-byte aligned, on GPUs since Ampere."""
    lies = all(size * weight.itemsize % 16 == 0 for size in weight.shape[1:])
    return lies and (weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device) >= (8, 0))


def multiply_each(
    weight: torch.Tensor | QuantisedWeight, x: torch.Tensor, bounds: Sequence[int], *, transposed: bool
) -> torch.Tensor:
    """`multiply` without biases, one expert after another: weight [E, out, in], or [E, in, out] if transposed."""
    found = [x.new_empty(0, weight.shape[2 if transposed else 1])]
    for _, rows, own in by_expert(weight, bounds):
        found.append(functional.linear(x[rows], own.t() if transposed else own))
    return torch.cat(found)
