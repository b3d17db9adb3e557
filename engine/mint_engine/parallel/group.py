"""How ranks of one engine put together what torch computes on each: in shared memory on the CPU, by NCCL on GPUs."""

from typing import Protocol

import torch

from mint_engine.parallel.shares import Share


class Group(Protocol):
    """One rank's place among them. All ranks call the same, as often and in the same order."""

    @property
    def share(self) -> Share:
        """What this rank holds."""
        ...

    def sum(self, partial: torch.Tensor) -> torch.Tensor:
        """What all ranks have, added up, to the bit the same on all of them; `partial` may be overwritten.

        Raises EngineUnavailable where one has ended, or comes too late.
        """
        ...

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """On rank 0 all ranks' logits [n, v] side by side, [n, V]; on others their own. Raises as `sum` does.

        They may be overwritten once rank 0 tells the others of their next step.
        """
        ...
