"""What sparse attention's indexer chose of each row's past, for the rows of one step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mint_engine.model.paged import Chunk, Decodes


@dataclass(frozen=True)
class Selection:
    """Chosen cached tokens; None stands for all of them. Later layers may share a selection (GLM-5)."""

    decodes: tuple[torch.Tensor | None, ...] | None = None  # [B, N] bool for each group
    chunks: tuple[torch.Tensor | None, ...] | None = None  # [T, N] bool for each chunk
    # For kernels on a GPU, of their rows [n, k] int32: positions in order; if a row sees fewer, the rest is not read.
    positions: torch.Tensor | None = None

    def of_decodes(self, decodes: Sequence[Decodes]) -> tuple[torch.Tensor | None, ...]:
        """Return the tokens chosen for each group of decoding requests."""
        return self.decodes if self.decodes is not None else (None,) * len(decodes)

    def of_chunks(self, chunks: Sequence[Chunk]) -> tuple[torch.Tensor | None, ...]:
        """Return the tokens chosen for each chunk."""
        return self.chunks if self.chunks is not None else (None,) * len(chunks)


def choose(scores: torch.Tensor, visible: torch.Tensor, count: int) -> torch.Tensor:
    """Choose the `count` best scored visible tokens of each row, [rows, N] bool; the earlier ones among equals.

    The choice among equals must not depend on the device, or on how the past is cut into pages or steps.
    """
    scores = scores.masked_fill(~visible, -torch.inf)
    least = scores.topk(min(count, scores.shape[-1]), sorted=False).values.amin(-1, keepdim=True)
    above, equal = scores > least, scores == least
    room = count - above.sum(-1, keepdim=True)
    return (above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room))) & visible


def positions_of(chosen: torch.Tensor, count: int) -> torch.Tensor:
    """Return the chosen positions of each row, at most `count`, in order [rows, count] int32; zeros follow fewer.

    Chosen: [rows, N] bool. The host need not know how many there are.
    """
    places = torch.where(chosen, chosen.cumsum(-1) - 1, count)  # the others go to a column that is cut off
    at = torch.arange(chosen.shape[1], dtype=torch.int32, device=chosen.device).expand_as(chosen)
    found = torch.zeros((chosen.shape[0], count + 1), dtype=torch.int32, device=chosen.device)
    return found.scatter_(-1, places, at)[:, :count].contiguous()
