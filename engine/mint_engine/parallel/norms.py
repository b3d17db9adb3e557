"""Norms of queries and keys over all heads, of which a rank has only some (OLMo 2, arXiv 2501.00656, 3.2)."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from mint_contracts.cuts import Cut


class SharedNorm(nn.Module):
    """A rank's part of a norm over all heads: ranks add up their sums of squares."""

    add: Callable[[torch.Tensor], torch.Tensor]  # sums over all ranks; set by the pass that computes

    def __init__(self, norm: Any, held: Cut, *, counted: bool) -> None:
        """Cut an uncut `norm`. Not `counted`: keys that another rank has, too, and counts."""
        super().__init__()
        self.weight = nn.Parameter(norm.weight[slice(*held)].clone(), requires_grad=False)
        self.whole, self.variance_epsilon = int(norm.weight.shape[0]), float(norm.variance_epsilon)
        self.counted = counted

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Norm x [1, T, own heads * D]; the result has the same shape and is rounded as by transformers' norm."""
        wide = x.float()
        squares = wide.pow(2).sum(-1, keepdim=True) * float(self.counted)  # gradients are summed wherever squares are
        scale = torch.rsqrt(self.add(squares) / self.whole + self.variance_epsilon)
        return (self.weight * (wide * scale)).to(x.dtype)


def shared_norms(model: nn.Module) -> Iterator[SharedNorm]:
    """Return the shared norms of a cut model."""
    return (module for module in model.modules() if isinstance(module, SharedNorm))
