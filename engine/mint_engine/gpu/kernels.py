"""The kernels for GPUs as the passes use them. Importing this needs Triton, which torch's builds for GPUs bring."""

from collections.abc import Sequence

import torch

from mint_contracts.layer_groups import pages_for
from mint_engine.gpu import attend, lora
from mint_engine.gpu.attend import TOKENS, Work
from mint_engine.gpu.lora import GpuRows
from mint_engine.model.paged import Span

Lists = tuple[list[int], list[int], list[int], list[int]]


class GpuKernels:
    """Makes a step's plans for the kernels."""

    name = "triton"

    @property
    def rehearsals(self) -> tuple[tuple[int, int], ...]:
        """Rows of steps and their position, for which other programs are compiled than for a short prompt's."""
        return (lora.FEW + 1, 0), (1, attend.SPLIT)

    def form(self, rows: int) -> int:
        """Return which programs add adapters to so many rows."""
        return lora.tile_of(rows)

    def rows(self, slots: torch.Tensor, experts: torch.Tensor | None = None) -> GpuRows:
        """Return a step's rows, see GpuRows."""
        return GpuRows(slots, experts)

    def lists(self, spans: Sequence[Span]) -> Lists:
        """Return the parts of `Work` in order, to be copied to the device together with other lists."""
        chunks, decodes, decoding, tables = list[int](), list[int](), list[int](), list[int]()
        for span in spans:
            at = len(tables)
            tables += span.pages[: pages_for(span.position + span.length)]
            if span.length == 1:
                splits = 1 + span.position // attend.SPLIT
                decoding += (span.row, len(decodes) // 5, splits)
                for number in range(splits):
                    decodes += (span.row, 1, span.position, at, number)
                continue
            for done in range(0, span.length, TOKENS):
                chunks += (span.row + done, min(TOKENS, span.length - done), span.position + done, at, 0)
        return chunks, decodes, decoding, tables

    def work(self, lists: Sequence[torch.Tensor]) -> Work:
        """Return a step's attention, of its `lists` on the device."""
        chunks, decodes, decoding, tables = lists
        return Work(chunks.view(-1, 5), decodes.view(-1, 5), decoding.view(-1, 3), tables)
