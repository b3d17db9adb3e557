"""What a sparse attention's indexer chose of each row's past, for the rows of one step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mint_engine.model.paged import Chunk, Decodes


@dataclass(frozen=True)
class Selection:
    """Chosen cached tokens; None stands for all of them. Later layers may share one (GLM-5)."""

    decodes: tuple[torch.Tensor | None, ...] | None = None  # a group's [B, N] bool each
    chunks: tuple[torch.Tensor | None, ...] | None = None  # a chunk's [T, N] bool each

    def of_decodes(self, decodes: Sequence[Decodes]) -> tuple[torch.Tensor | None, ...]:
        """The chosen of each group of requests that decode."""
        return self.decodes if self.decodes is not None else (None,) * len(decodes)

    def of_chunks(self, chunks: Sequence[Chunk]) -> tuple[torch.Tensor | None, ...]:
        """The chosen of each chunk."""
        return self.chunks if self.chunks is not None else (None,) * len(chunks)


def choose(scores: torch.Tensor, visible: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` best scored visible tokens of each row, [rows, N] bool; of equals the earlier ones.

    Which of equals are taken must not depend on how the past is cut into pages or steps, nor on the device.
    """
    order = scores.masked_fill(~visible, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(visible).scatter_(-1, order[..., :count], True) & visible
