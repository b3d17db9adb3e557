"""The multi-LoRA product of stacked experts: each pair of token and expert adds that expert's part of the adapter.

For pair p of a token with slot s and expert e:  y[p] += (x[p] @ A[s, e].T) * scaling[s] @ B[s, e].T.

Pairs are sorted by expert and slot. The compiled kernel adds all of a layer's pairs in one call. Plain torch groups
pairs whose adapters have the same layout: gathered weights and two batched matmuls, for some pairs at a time.

Letters in shapes: T tokens, P pairs, S slots, E experts, r rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from mint_contracts.cuts import Cut
from mint_engine.kernels.constants import ITEM_ROWS
from mint_engine.kernels.library import Kernels
from mint_engine.model.device import put
from mint_engine.model.lora import Segment, with_adapters
from mint_engine.residency.slots import ABSENT, NO_SLOT, Slots

if TYPE_CHECKING:
    from mint_engine.gpu.kernels import GpuKernels

# Pairs whose weights are gathered at a time; more would only take more memory.
_AT_ONCE = 256


@dataclass(frozen=True)
class ExpertRows:
    """One step's rows: the slot of each, and which slots share a layout. Not created if no row has an adapter."""

    owners: torch.Tensor  # [T] int64: slots, NO_SLOT for the bare base
    # [S + 1] int64: a slot's kind; S for slots without rows in this step, and for the last, which stands for NO_SLOT.
    kinds: torch.Tensor | None  # None if kernels for GPUs add all of them
    examples: tuple[int, ...]  # one slot of each kind
    slots: Slots
    kernels: Kernels | None
    gpu: "GpuKernels | None" = None

    @cached_property
    def scalings(self) -> torch.Tensor:
        """All slots' scalings [M, S], in their dtype and memory: one copy, and none where the kernel computes."""
        return put(self.slots.scalings.to(self.slots.dtype), self.slots.device)


@dataclass(frozen=True)
class Pairs:
    """One layer's pairs, sorted; with several ranks, those of experts that this rank holds, and maybe `spare` ones.

    Only `bounds` and `alike` wait for a GPU.
    """

    order: torch.Tensor  # [P] int64: the pair of token `order // k` is the `order % k`-th of its experts
    ends: torch.Tensor  # [E] int32: where each expert's pairs end
    experts: torch.Tensor  # [P] int64: counted from the first that is held
    owners: torch.Tensor | None  # [P] int64
    items: torch.Tensor | None  # [n, 4] int32 for the kernel: first pair, pairs, slot, expert
    rows: ExpertRows | None
    spare: torch.Tensor | None = None  # [P] bool: of experts that are not held; they come last, and have no owner

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """Where each expert's pairs begin, and the last one's end [E + 1]."""
        return (0, *self.ends.tolist())

    @cached_property
    def alike(self) -> tuple[torch.Tensor, ...]:
        """Which pairs are of slots of each kind, in order."""
        assert self.rows is not None  # noqa: S101 - asked where there are adapters
        assert self.rows.kinds is not None  # noqa: S101 - asked where plain torch adds them
        assert self.owners is not None  # noqa: S101 - as rows is
        kinds, order = torch.sort(self.rows.kinds[self.owners], stable=True)  # NO_SLOT takes the last
        ends = _ends(kinds, len(self.rows.examples)).tolist()
        return tuple(order[start:stop] for start, stop in pairwise((0, *ends)))


def plan_experts(
    segments: Sequence[Segment], tokens: int, slots: Slots, kernels: Kernels | None
) -> ExpertRows | None:
    """Plan the experts' rows of a step's segments; None if no row has an adapter."""
    tenants = with_adapters(segments, slots)
    if not tenants:
        return None
    owners = np.full(tokens, NO_SLOT, dtype=np.int64)
    kinds = np.full(slots.count + 1, slots.count, dtype=np.int64)
    alike: dict[tuple[bytes, bytes], int] = {}
    examples: list[int] = []
    for each in tenants:
        owners[each.start : each.start + each.length] = each.slot
        key = (slots.places[:, each.slot].numpy().tobytes(), slots.ranks[:, each.slot].numpy().tobytes())
        if key not in alike:
            alike[key] = len(alike)
            examples.append(each.slot)
        kinds[each.slot] = alike[key]
    both = put(torch.from_numpy(np.concatenate((owners, kinds))), slots.device)
    return ExpertRows(both[:tokens], both[tokens:], tuple(examples), slots, kernels)


def sort_pairs(
    routes: torch.Tensor, rows: ExpertRows | None, held: Cut, *, whole: bool = False, spares: int = 0
) -> Pairs:
    """Sort the pairs of routes [T, k] with experts `held` here, by expert, and by slot if rows have any.

    If these are the `whole` of a layer's experts, nothing waits for a GPU; nor if there are at most `spares` pairs,
    for which those of other experts are not left out.
    """
    flat, each = routes.reshape(-1).long(), routes.shape[1]
    own, many = flat - held.start, flat.shape[0]
    spared = not whole and many <= spares
    if not whole:
        others = (own < 0) | (own >= held.size)
        own = own.masked_fill(others, held.size)  # after all that are held
        if not spared:
            many -= int(others.sum())
    if rows is None:
        chosen, order = (each[:many] for each in torch.sort(own, stable=True))
        owners = items = None
    else:
        count = rows.slots.count + 1
        keys, order = torch.sort(own * count + rows.owners.repeat_interleave(each) + 1, stable=True)
        keys, order = keys[:many], order[:many]
        chosen, owners = keys // count, keys % count - 1
        items = _items(keys.numpy(), count) if rows.kernels is not None else None
    ends = _ends(chosen, held.size)
    if not spared:
        return Pairs(order, ends, chosen, owners, items, rows)
    spare = chosen == held.size
    owners = owners.masked_fill(spare, NO_SLOT) if owners is not None else None
    return Pairs(order, ends, chosen.clamp(max=held.size - 1), owners, items, rows, spare)


def add_expert_lora(
    targets: Sequence[tuple[torch.Tensor, int | None]], x: torch.Tensor, slots: Slots, rows: ExpertRows, pairs: Pairs
) -> None:
    """Add adapters of x [P, in] to each target (y [P, out], module) in place. The modules share this input."""
    adapted = [(y, module) for y, module in targets if module is not None]
    if rows.kernels is not None and pairs.items is not None and not torch.is_grad_enabled():
        for y, module in adapted:
            rows.kernels.lora_experts(y, x, pairs.items, slots, module)
        return
    if rows.gpu is not None and pairs.owners is not None:
        planned = rows.gpu.rows(pairs.owners, pairs.experts)
        for y, module in adapted:
            planned.add(y, x, slots, module)
        return
    targeted = [[each for each in adapted if slots.places[each[1], example] != ABSENT] for example in rows.examples]
    if not any(targeted):
        return  # `alike` waits for a GPU
    for chosen, example, some_targets in zip(pairs.alike, rows.examples, targeted, strict=True):
        for some in torch.split(chosen, _AT_ONCE):
            for y, module in some_targets:
                _add_gathered(y, x, slots, module, example, some, pairs)


def _add_gathered(
    y: torch.Tensor, x: torch.Tensor, slots: Slots, module: int, example: int, some: torch.Tensor, pairs: Pairs
) -> None:
    """Add adapters to the pairs `some` [n], whose slots have the same layout as `example`."""
    assert pairs.owners is not None  # noqa: S101 - by the one caller
    assert pairs.rows is not None  # noqa: S101 - by the one caller
    place, rank = int(slots.places[module, example]), int(slots.ranks[module, example])
    (wide, high), experts = slots.shapes[module], slots.experts[module]
    middle = place + experts * rank * wide
    a = slots.memory[:, place:middle].view(slots.count, experts, rank, wide)
    b = slots.memory[:, middle : middle + experts * rank * high].view(slots.count, experts, rank, high)
    owners, numbers = pairs.owners[some], pairs.experts[some]
    scalings = pairs.rows.scalings[module][owners]
    inner = torch.bmm(x.index_select(0, some).unsqueeze(1), a[owners, numbers].transpose(1, 2))  # [n, 1, r]
    inner = inner * scalings[:, None, None]
    y.index_add_(0, some, torch.bmm(inner, b[owners, numbers]).squeeze(1))


def _ends(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """Where each of `count` numbers from 0 on ends among sorted ones; [count] int32."""
    return torch.searchsorted(numbers, torch.arange(1, count + 1, device=numbers.device), out_int32=True)


def _items(keys: np.ndarray[tuple[int], np.dtype[np.int64]], count: int) -> torch.Tensor:
    """Return the kernel's work items: runs of one expert and slot, of at most `ITEM_ROWS` pairs each."""
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    begins = np.repeat(firsts, np.diff(firsts, append=len(keys)))  # where each pair's run begins
    starts = np.flatnonzero((np.arange(len(keys)) - begins) % ITEM_ROWS == 0)
    lengths = np.diff(starts, append=len(keys))
    owners, numbers = keys[starts] % count - 1, keys[starts] // count
    table = np.stack((starts, lengths, owners, numbers), axis=1)[owners != NO_SLOT]
    return torch.from_numpy(np.ascontiguousarray(table, dtype=np.int32))
