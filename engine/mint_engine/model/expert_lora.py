"""The multi-LoRA product of stacked experts: each pair of token and expert adds that expert's part of the adapter.

For pair p of a token with slot s and expert e:  y[p] += (x[p] @ A[s, e].T) * scaling[s] @ B[s, e].T.

Pairs are sorted by expert and slot. The compiled kernel adds all of a layer's pairs in one call. Plain torch groups
pairs whose adapters have the same layout: gathered weights and two batched matmuls, for some pairs at a time.

Letters in shapes: T tokens, P pairs, S slots, E experts, r rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mint_engine.kernels.library import ROWS, Kernels
from mint_engine.model.lora import Segment, with_adapters
from mint_engine.parallel.shares import Cut
from mint_engine.residency.slots import ABSENT, NO_SLOT, Slots

# Pairs whose weights are gathered at a time; more would only take more memory.
_AT_ONCE = 256


@dataclass(frozen=True)
class ExpertRows:
    """One step's rows: the slot of each, and which slots share a layout. Not created if no row has an adapter."""

    owners: torch.Tensor  # [T] int64: slots, NO_SLOT for the bare base
    kinds: torch.Tensor  # [S + 1] int64: a slot's kind; -1 for the last, which stands for NO_SLOT
    examples: tuple[int, ...]  # one slot of each kind
    kernels: Kernels | None


@dataclass(frozen=True)
class Pairs:
    """One layer's pairs, sorted; with several ranks, only those of experts that this rank holds."""

    order: torch.Tensor  # [P] int64: the pair of token `order // k` is the `order % k`-th of its experts
    bounds: tuple[int, ...]  # [E + 1]: where each expert's pairs begin
    experts: torch.Tensor  # [P] int64: counted from the first that is held
    owners: torch.Tensor | None  # [P] int64
    items: torch.Tensor | None  # [n, 4] int32 for the kernel: first pair, pairs, slot, expert


def plan_experts(
    segments: Sequence[Segment], tokens: int, slots: Slots, kernels: Kernels | None
) -> ExpertRows | None:
    """Plan the experts' rows of a step's segments; None if no row has an adapter."""
    tenants = with_adapters(segments, slots)
    if not tenants:
        return None
    owners = np.full(tokens, NO_SLOT, dtype=np.int64)
    kinds = np.full(slots.count + 1, -1, dtype=np.int64)
    alike: dict[tuple[bytes, bytes], int] = {}
    examples: list[int] = []
    for each in tenants:
        owners[each.start : each.start + each.length] = each.slot
        key = (slots.places[:, each.slot].numpy().tobytes(), slots.ranks[:, each.slot].numpy().tobytes())
        if key not in alike:
            alike[key] = len(alike)
            examples.append(each.slot)
        kinds[each.slot] = alike[key]
    device = slots.device
    return ExpertRows(
        torch.from_numpy(owners).to(device), torch.from_numpy(kinds).to(device), tuple(examples), kernels
    )


def sort_pairs(routes: torch.Tensor, rows: ExpertRows | None, held: Cut) -> Pairs:
    """Sort the pairs of routes [T, k] with experts `held` here, by expert, and by slot if rows have any."""
    flat, each = routes.reshape(-1).long(), routes.shape[1]
    own = flat - held.start
    others = (own < 0) | (own >= held.size)
    own = own.masked_fill(others, held.size)  # sorted after all experts that are held
    bounds = _bounds(own, held.size)
    if rows is None:
        chosen, order = (each[: bounds[-1]] for each in torch.sort(own, stable=True))
        return Pairs(order, bounds, chosen, None, None)
    owners = rows.owners.repeat_interleave(each)
    count = rows.kinds.shape[0]
    keys, order = (each[: bounds[-1]] for each in torch.sort(own * count + owners + 1, stable=True))
    chosen, owners = keys // count, keys % count - 1
    items = _items(keys.numpy(), count) if rows.kernels is not None else None
    return Pairs(order, bounds, chosen, owners, items)


def add_expert_lora(
    targets: Sequence[tuple[torch.Tensor, int | None]], x: torch.Tensor, slots: Slots, rows: ExpertRows, pairs: Pairs
) -> None:
    """Add adapters of x [P, in] to each target (y [P, out], module) in place. The modules share this input."""
    adapted = [(y, module) for y, module in targets if module is not None]
    if rows.kernels is not None and pairs.items is not None and not torch.is_grad_enabled():
        for y, module in adapted:
            rows.kernels.lora_experts(y, x, pairs.items, slots, module)
        return
    assert pairs.owners is not None  # noqa: S101 - as `rows` is not None
    kinds = rows.kinds[pairs.owners]  # NO_SLOT selects the last
    for kind, example in enumerate(rows.examples):
        chosen = (kinds == kind).nonzero().squeeze(1)
        for some in torch.split(chosen, _AT_ONCE):
            for y, module in adapted:
                if slots.places[module, example] != ABSENT:
                    _add_gathered(y, x, slots, module, example, some, pairs)


def _add_gathered(
    y: torch.Tensor, x: torch.Tensor, slots: Slots, module: int, example: int, some: torch.Tensor, pairs: Pairs
) -> None:
    """Add adapters to the pairs `some` [n], whose slots have the same layout as `example`."""
    assert pairs.owners is not None  # noqa: S101 - by the one caller
    place, rank = int(slots.places[module, example]), int(slots.ranks[module, example])
    (wide, high), experts = slots.shapes[module], slots.experts[module]
    middle = place + experts * rank * wide
    a = slots.memory[:, place:middle].view(slots.count, experts, rank, wide)
    b = slots.memory[:, middle : middle + experts * rank * high].view(slots.count, experts, rank, high)
    owners, numbers = pairs.owners[some], pairs.experts[some]
    scalings = slots.scalings[module].to(y.device, y.dtype)[owners]
    inner = torch.bmm(x.index_select(0, some).unsqueeze(1), a[owners, numbers].transpose(1, 2))  # [n, 1, r]
    inner = inner * scalings[:, None, None]
    y.index_add_(0, some, torch.bmm(inner, b[owners, numbers]).squeeze(1))


def _bounds(chosen: torch.Tensor, experts: int) -> tuple[int, ...]:
    counts = torch.bincount(chosen, minlength=experts)[:experts]
    return (0, *counts.cumsum(0).tolist())


def _items(keys: np.ndarray[tuple[int], np.dtype[np.int64]], count: int) -> torch.Tensor:
    """Return the kernel's work items: runs of one expert and slot, of at most `ROWS` pairs each."""
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    begins = np.repeat(firsts, np.diff(firsts, append=len(keys)))  # where each pair's run begins
    starts = np.flatnonzero((np.arange(len(keys)) - begins) % ROWS == 0)
    lengths = np.diff(starts, append=len(keys))
    owners, numbers = keys[starts] % count - 1, keys[starts] // count
    table = np.stack((starts, lengths, owners, numbers), axis=1)[owners != NO_SLOT]
    return torch.from_numpy(np.ascontiguousarray(table, dtype=np.int32))
