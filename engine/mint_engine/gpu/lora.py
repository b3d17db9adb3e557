"""What each row's adapter adds to a module's output, for all rows of a step in two launches, without padding.

For row t with slot s and expert e (0 in a module that is no stack):

    y[t] += (x[t] @ A[s, e].T) * scaling[s] @ B[s, e].T

Adapters are read where they lie in the slots, whatever their ranks, by a table on the device: the host neither sorts
rows nor waits. The first launch ("shrink") computes the middles in float32, in pieces of the inputs; the second
("expand") adds up a row's pieces, in order, and multiplies by B. No sum depends on which program ends first. The
division is Punica's (arXiv 2310.18547); as in S-LoRA (arXiv 2311.03285), rows with the same adapter share its reads.

Letters in shapes: S slots, M modules, T rows, E experts, r rank, R the largest rank that a slot takes.
"""

from dataclasses import dataclass

import torch
from triton import next_power_of_2

from mint_engine.gpu.lora_kernels import expand, shrink
from mint_engine.residency.slots import Slots

FEW = 256  # up to this many rows, a program takes one: they are of many adapters, and programs would be too few
TILE = 16  # rows of a program otherwise; the fewest that tensor cores multiply
RANKS = 64  # most ranks that a program multiplies at once
INPUTS, PIECE = 64, 1024  # inputs that a program multiplies at once, and in all
OUTPUTS = 128  # of a program


@dataclass(frozen=True)
class GpuRows:
    """One step's rows, on the device. Rows of one slot and expert are adjacent."""

    slots: torch.Tensor  # [T] int64; -1: the bare base
    experts: torch.Tensor | None = None  # [T] int64; None for modules that are no stacks

    def add(self, y: torch.Tensor, x: torch.Tensor, slots: Slots, module: int) -> None:
        """Add every row's adapter to y [T, out], in place, from the input x [T, in] of the `module`-th module.

        Rows of y may be columns of a wider tensor; those of x, of any.
        """
        (rows, width), height, most = x.shape, y.shape[1], slots.max_rank
        assert y.stride(1) == 1  # noqa: S101 - by all callers
        if x.stride(1) != 1:
            x = x.contiguous()
        tile, ranks, pieces = tile_of(rows), most_ranks(most), -(-width // PIECE)
        middle = torch.empty((pieces, rows, most), dtype=torch.float32, device=x.device)
        experts = self.slots if self.experts is None else self.experts
        common = (
            self.slots, experts, rows, slots.memory, slots.memory.stride(0), slots.parts, slots.parts.shape[1],
            module, width,
        )  # fmt: skip
        options = {
            "most": most,
            "stacked": self.experts is not None,
            "tile": tile,
            "padded": TILE,
            "ranks": ranks,
            "aligned": slots.alignment,
        }
        tiles = -(-rows // tile)
        shrink[tiles, -(-most // ranks), pieces](
            x, x.stride(0), middle, *common, inputs=INPUTS, piece=PIECE, **options
        )
        expand[tiles, -(-height // OUTPUTS)](
            y, y.stride(0), middle, *common, height, pieces, count=slots.experts[module], outputs=OUTPUTS, **options
        )


def tile_of(rows: int) -> int:
    """Return how many rows a program takes of so many: each number has programs of its own."""
    return 1 if rows <= FEW else TILE


def most_ranks(most: int) -> int:
    """Return how many ranks a program multiplies at once, if slots take `most`."""
    padded: int = next_power_of_2(most)
    return min(RANKS, max(16, padded))
