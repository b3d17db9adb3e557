"""The ranks' sums under autograd (Shoeybi et al. 2019, Megatron-LM, section 3: its functions f and g).

What a shared part of a decoder layer gives is added up on the way forward, and the gradient of what it takes on the
way back: each rank's is that of its own share. So all gradients within a part are one rank's parts of sums, also
those of what all ranks hold. What a norm over all heads adds up is within a part: every rank's share of what follows
has a part of its gradient, so that it is added up both ways.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mint_engine.parallel.group import Group
from mint_engine.parallel.norms import shared_norms
from mint_engine.parallel.sums import shared_parts, sum_output


def add_sums(model: PreTrainedModel, group: Group) -> None:
    """For a model that is cut already, and whose modules stay from now on."""
    for part, summed in shared_parts(model):
        _sum_input_back(part, group)
        for module in summed:
            sum_output(module, lambda partial: _Sum.apply(partial, group))
    for norm in shared_norms(model):
        norm.add = lambda squares: _Spread.apply(_Sum.apply(squares, group), group)


def _sum_input_back(part: nn.Module, group: Group) -> None:
    def spread(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if given:
            return (_Spread.apply(given[0], group), *given[1:]), named
        return given, named | {"hidden_states": _Spread.apply(named["hidden_states"], group)}

    part.register_forward_pre_hook(spread, with_kwargs=True)


class _Sum(torch.autograd.Function):
    """Megatron's g."""

    @staticmethod
    def forward(_: Any, partial: torch.Tensor, group: Group) -> torch.Tensor:
        """Every rank's partial sums, added up."""
        return group.sum(partial.clone())

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """A sum's gradient is that of each of its terms."""
        return gradients[0], None


class _Spread(torch.autograd.Function):
    """Megatron's f."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group) -> torch.Tensor:
        """The same on every rank."""
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Every rank's part of the gradient, added up."""
        return ctx.group.sum(gradients[0].clone()), None
