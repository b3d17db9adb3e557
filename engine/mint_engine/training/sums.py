"""The ranks' sums under autograd (Shoeybi et al. 2019, Megatron-LM, section 3: its functions f and g).

The output of a shared part of a decoder layer is summed over ranks in the forward, and the gradient of its input in
the backward, since each rank computes that of its own share. So within a part, all gradients are one rank's terms of
sums, also those of what all ranks hold. The sums of a norm over all heads lie within a part: every rank's share of
what follows has a term of their gradient, so they are added up in both directions.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mint_engine.parallel.group import Group
from mint_engine.parallel.norms import shared_norms
from mint_engine.parallel.sums import shared_parts, sum_output


def add_sums(model: PreTrainedModel, group: Group) -> None:
    """Insert the sums into a model that has been cut and whose modules are not replaced any more."""
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
    """Megatron's g: sum in the forward, identity in the backward."""

    @staticmethod
    def forward(_: Any, partial: torch.Tensor, group: Group) -> torch.Tensor:
        """Return the sum of all ranks' partial sums."""
        return group.sum(partial.clone())

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient unchanged: a sum's gradient is that of each of its terms."""
        return gradients[0], None


class _Spread(torch.autograd.Function):
    """Megatron's f: identity in the forward, sum in the backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group) -> torch.Tensor:
        """Return the input, which is the same on every rank."""
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the sum of all ranks' parts of the gradient."""
        return ctx.group.sum(gradients[0].clone()), None
