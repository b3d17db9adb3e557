"""The multi-LoRA product: in one packed batch, each row adds the adapter of its own request.

For row t with slot s:  y[t] += (x[t] @ A[s].T) * scaling[s] @ B[s].T, in the base's dtype; slot -1 adds nothing.
This is PEFT's `result + lora_B(lora_A(x)) * scaling` (peft/tuners/lora/layer.py, Linear.forward) with the scaling
applied to the R-wide middle instead of the wide end. PEFT by default keeps adapters of a half-precision base in
float32 and so rounds once, at the end; in float32 the two agree to a few units in the last place.

Rows of one slot lie together (a segment). A long segment is two matmuls; short ones are taken together, padded only
to the next power of two of their ranks: gathered weights and two batched matmuls.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mint_engine.slots import NO_SLOT, Stack

# Rows from which a segment goes by itself. In bf16 on 2 busy cores the gather won at 8 rows (ranks 8 and 32) and lost
# at 64; 16 is interpolated between them.
LONG_SEGMENT = 16


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `start + length` belong to `slot`."""

    start: int
    length: int
    slot: int


@dataclass(frozen=True)
class Gather:
    """Rows of short segments whose ranks share a bucket: row `rows[i]` belongs to slot `slots[i]`."""

    rows: torch.Tensor  # [n] int64
    slots: torch.Tensor  # [n] int64
    members: frozenset[int]
    rank: int  # the bucket: a power of two, or the largest rank


@dataclass(frozen=True)
class Rows:
    """One step's rows, sorted out once and used by every module."""

    long: tuple[Segment, ...]
    gathers: tuple[Gather, ...]


def bucket(rank: int, max_rank: int) -> int:
    """The next power of two, at most `max_rank`."""
    return min(1 << (rank - 1).bit_length(), max_rank) if rank > 0 else 0


def sort_rows(segments: Sequence[Segment], ranks: Sequence[int], max_rank: int, device: torch.device) -> Rows | None:
    """Sort a step's segments into long ones and gathers; None where no row has an adapter.

    `ranks` is by slot, the largest over its modules.
    """
    tenants = [each for each in segments if each.slot != NO_SLOT and ranks[each.slot] > 0]
    if not tenants:
        return None
    short: dict[int, list[Segment]] = {}
    for each in tenants:
        if each.length < LONG_SEGMENT:
            short.setdefault(bucket(ranks[each.slot], max_rank), []).append(each)
    return Rows(
        long=tuple(each for each in tenants if each.length >= LONG_SEGMENT),
        gathers=tuple(_gather(members, rank, device) for rank, members in sorted(short.items())),
    )


def add_lora(y: torch.Tensor, x: torch.Tensor, stack: Stack, rows: Rows) -> None:
    """Add every row's adapter to y [T, out], in place, from the module's input x [T, in]."""
    for segment in rows.long:
        rank = stack.ranks[segment.slot]
        if rank:
            span = slice(segment.start, segment.start + segment.length)
            middle = x[span] @ stack.a[segment.slot, :rank].t()
            middle *= stack.scaling[segment.slot]
            y[span].addmm_(middle, stack.b[segment.slot, :rank])
    for gather in rows.gathers:
        if any(stack.ranks[slot] for slot in gather.members):
            _add_gathered(y, x, stack, gather)


def _add_gathered(y: torch.Tensor, x: torch.Tensor, stack: Stack, gather: Gather) -> None:
    a = stack.a[:, : gather.rank].index_select(0, gather.slots)  # [n, r, in]
    b = stack.b[:, : gather.rank].index_select(0, gather.slots)  # [n, r, out]
    middle = torch.bmm(x.index_select(0, gather.rows).unsqueeze(1), a.transpose(1, 2))  # [n, 1, r]
    middle *= stack.scaling.index_select(0, gather.slots).to(middle.dtype)[:, None, None]
    y.index_add_(0, gather.rows, torch.bmm(middle, b).squeeze(1))


def _gather(members: Sequence[Segment], rank: int, device: torch.device) -> Gather:
    rows = [row for each in members for row in range(each.start, each.start + each.length)]
    owners = [each.slot for each in members for _ in range(each.length)]
    return Gather(
        rows=torch.tensor(rows, device=device),
        slots=torch.tensor(owners, device=device),
        members=frozenset(owners),
        rank=rank,
    )
