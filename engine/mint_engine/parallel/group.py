"""How an engine's ranks combine what torch computes on each: in shared memory or by gloo on CPUs, by NCCL on GPUs."""

from typing import Protocol

import torch

from mint_engine.parallel.shares import Share


class Group(Protocol):
    """One rank's membership. All ranks must make the same calls in the same order."""

    @property
    def share(self) -> Share:
        """The share of the base that this rank holds."""
        ...

    def sum(self, partial: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks, bit-identical on all of them; `partial` may be overwritten.

        Raises EngineUnavailable if a rank has ended or comes too late.
        """
        ...

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """Return all ranks' logits [n, v] side by side, [n, V], on rank 0; its own on others. Raises as `sum` does.

        They may be overwritten once rank 0 sends the others their next step.
        """
        ...
