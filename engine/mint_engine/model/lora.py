"""The multi-LoRA product: in one packed batch, each row adds the adapter of its own request.

For row t with slot s:  y[t] += (x[t] @ A[s].T) * scaling[s] @ B[s].T, in the base's dtype; slot -1 adds nothing.
This is PEFT's `result + lora_B(lora_A(x)) * scaling` (peft/tuners/lora/layer.py, Linear.forward) with the scaling
applied to the R-wide middle instead of the wide end. PEFT by default keeps adapters of a half-precision base in
float32 and so rounds once, at the end; in float32 the two agree to a few units in the last place.

Rows of one slot are adjacent (a segment). Here, in plain torch, a long segment is two matmuls; short ones are grouped
if their adapters have the same layout (the same ranks and targets), so that nothing is padded: gathered weights and
two batched matmuls. `mint_engine.kernels` has the same product as one fused pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mint_engine.kernels.constants import ITEM_ROWS
from mint_engine.model.device import lists_on, put
from mint_engine.model.span import Span
from mint_engine.residency.slots import ABSENT, NO_SLOT, Slots

# Segments of at least this many rows are computed alone. In bf16 on 2 busy cores, gathering won at 8 rows (ranks 8
# and 32) and lost at 64; 16 is interpolated.
LONG_SEGMENT = 16


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `start + length` belong to `slot`."""

    start: int
    length: int
    slot: int


@dataclass(frozen=True)
class Gather:
    """Rows of short segments whose slots have the same layout: row `rows[i]` belongs to slot `slots[i]`."""

    rows: torch.Tensor  # [n] int64
    slots: torch.Tensor  # [n] int64
    scalings: torch.Tensor  # [M, n], in the slots' dtype
    example: int  # one of the slots


@dataclass(frozen=True)
class Rows:
    """One step's rows, sorted once and used by every module."""

    long: tuple[Segment, ...]
    gathers: tuple[Gather, ...]

    def add(self, y: torch.Tensor, x: torch.Tensor, slots: Slots, module: int) -> None:
        """Add every row's adapter to y [T, out], in place, from the input x [T, in] of the `module`-th module."""
        for segment in self.long:
            part = slots.part(module, segment.slot)
            if part is not None:
                span = slice(segment.start, segment.start + segment.length)
                middle = x[span] @ part[0].t()
                middle *= slots.scalings[module, segment.slot]
                y[span].addmm_(middle, part[1])
        for gather in self.gathers:
            if slots.places[module, gather.example] != ABSENT:
                _add_gathered(y, x, slots, module, gather)


def merge_spans(spans: Sequence[Span]) -> list[Segment]:
    """Merge adjacent spans of the same slot into segments."""
    merged: list[Segment] = []
    for span in spans:
        if merged and merged[-1].slot == span.slot:
            merged[-1] = Segment(merged[-1].start, merged[-1].length + span.length, span.slot)
        else:
            merged.append(Segment(span.row, span.length, span.slot))
    return merged


def with_adapters(segments: Sequence[Segment], slots: Slots) -> list[Segment]:
    """Return the segments whose slot holds an adapter."""
    return [each for each in segments if each.slot != NO_SLOT and slots.filled[each.slot]]


def work_items(segments: Sequence[Segment], slots: Slots) -> torch.Tensor:
    """Return a kernel's work items: first row, rows (at most ITEM_ROWS) and slot of each, [n, 3] int32."""
    items = [
        (segment.start + done, min(ITEM_ROWS, segment.length - done), segment.slot)
        for segment in with_adapters(segments, slots)
        for done in range(0, segment.length, ITEM_ROWS)
    ]
    return torch.tensor(items, dtype=torch.int32).view(-1, 3)


def sort_rows(segments: Sequence[Segment], slots: Slots) -> Rows | None:
    """Sort a step's segments into long ones and gathers; None if no row has an adapter."""
    tenants = with_adapters(segments, slots)
    if not tenants:
        return None
    alike: dict[tuple[bytes, bytes], list[Segment]] = {}
    for each in tenants:
        if each.length < LONG_SEGMENT:
            places, ranks = slots.places[:, each.slot].numpy(), slots.ranks[:, each.slot].numpy()
            alike.setdefault((places.tobytes(), ranks.tobytes()), []).append(each)
    return Rows(
        long=tuple(each for each in tenants if each.length >= LONG_SEGMENT),
        gathers=tuple(_gather(members, slots) for members in alike.values()),
    )


def _add_gathered(y: torch.Tensor, x: torch.Tensor, slots: Slots, module: int, gather: Gather) -> None:
    place, rank = int(slots.places[module, gather.example]), int(slots.ranks[module, gather.example])
    (wide, high), count = slots.shapes[module], gather.rows.shape[0]
    packed = slots.memory[:, place : place + rank * (wide + high)].index_select(0, gather.slots)
    a, b = packed[:, : rank * wide].view(count, rank, wide), packed[:, rank * wide :].view(count, rank, high)
    middle = torch.bmm(x.index_select(0, gather.rows).unsqueeze(1), a.transpose(1, 2))  # [n, 1, r]
    middle *= gather.scalings[module][:, None, None]
    y.index_add_(0, gather.rows, torch.bmm(middle, b).squeeze(1))


def _gather(members: Sequence[Segment], slots: Slots) -> Gather:
    rows = [row for each in members for row in range(each.start, each.start + each.length)]
    owners = [each.slot for each in members for _ in range(each.length)]
    at, of = lists_on(slots.device, rows, owners)
    return Gather(
        rows=at,
        slots=of,
        scalings=put(slots.scalings[:, owners].to(slots.dtype), slots.device),
        example=members[0].slot,
    )
