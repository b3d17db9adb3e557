"""Norms of queries and keys over all heads at once, of which a rank has but some (OLMo 2, arXiv 2501.00656, 3.2)."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from mint_engine.parallel.shares import Cut


class SharedNorm(nn.Module):
    """A rank's part of such a norm: ranks add up their sums of squares."""

    add: Callable[[torch.Tensor], torch.Tensor]  # gives what all ranks have, added up; put here by who computes

    def __init__(self, norm: Any, held: Cut, *, counted: bool) -> None:
        """Of a whole `norm`. Not `counted` are keys that another rank has too, and counts."""
        super().__init__()
        self.weight = nn.Parameter(norm.weight[slice(*held)].clone(), requires_grad=False)
        self.whole, self.variance_epsilon = int(norm.weight.shape[0]), float(norm.variance_epsilon)
        self.counted = counted

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [1, T, own heads * D], alike; rounded as transformers' norm does."""
        wide = x.float()
        squares = wide.pow(2).sum(-1, keepdim=True) * float(self.counted)  # gradients meet wherever squares do
        scale = torch.rsqrt(self.add(squares) / self.whole + self.variance_epsilon)
        return (self.weight * (wide * scale)).to(x.dtype)


def shared_norms(model: nn.Module) -> Iterator[SharedNorm]:
    """Those of a model that is cut."""
    return (module for module in model.modules() if isinstance(module, SharedNorm))
