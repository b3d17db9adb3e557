"""The kernels for GPUs as the passes use them. Importing this needs Triton, which torch's builds for GPUs bring."""

from collections.abc import Sequence

import torch

from mint_contracts.layer_groups import pages_for
from mint_engine.gpu.attend import TOKENS, Work
from mint_engine.gpu.lora import GpuRows
from mint_engine.model.paged import Span

Lists = tuple[list[int], list[int], list[int]]


class GpuKernels:
    """Makes a step's plans for the kernels."""

    name = "triton"

    def rows(self, slots: torch.Tensor, experts: torch.Tensor | None = None) -> GpuRows:
        """Return a step's rows, see GpuRows."""
        return GpuRows(slots, experts)

    def lists(self, spans: Sequence[Span]) -> Lists:
        """Return the chunks, decodes and tables of `Work`, to be copied to the device together with other lists."""
        chunks, decodes, tables = list[int](), list[int](), list[int]()
        for span in spans:
            at = len(tables)
            tables += span.pages[: pages_for(span.position + span.length)]
            if span.length == 1:
                decodes += (span.row, 1, span.position, at)
                continue
            for done in range(0, span.length, TOKENS):
                chunks += (span.row + done, min(TOKENS, span.length - done), span.position + done, at)
        return chunks, decodes, tables

    def work(self, spans: Sequence[Span], lists: Sequence[torch.Tensor]) -> Work:
        """Return a step's attention, of the `lists` of these spans on the device."""
        chunks, decodes, tables = lists
        longest = max((span.position + 1 for span in spans if span.length == 1), default=0)
        return Work(chunks.view(-1, 4), decodes.view(-1, 4), tables, longest)
