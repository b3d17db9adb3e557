"""Adds up the ranks' partial sums where a decoder layer needs the totals: twice, before the residual stream.

A part of a layer without experts adds up right after its linears that are cut by inputs. If experts and a shared
network each give a term of one sum, it is added up once, at the end of the part of the layer that contains them all.
In addition, norms over all heads add up their squares.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mint_engine.model.experts import is_stack
from mint_engine.model.modules import layers_of
from mint_engine.parallel.group import Group
from mint_engine.parallel.norms import shared_norms
from mint_engine.parallel.shares import is_partial


def add_sums(model: PreTrainedModel, group: Group) -> None:
    """Install the sums in a cut model, whose modules must not be replaced afterwards."""
    for _, summed in shared_parts(model):
        for module in summed:
            sum_output(module, group.sum)
    for norm in shared_norms(model):
        norm.add = group.sum


def shared_parts(model: PreTrainedModel) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Yield the parts of decoder layers that ranks split, and the modules of each whose outputs they add up."""
    for part in (part for _, layer in layers_of(model) for part in layer.children()):
        if any(is_stack(module) for module in part.modules()):
            yield part, [part]
        elif summed := [module for path, module in part.named_modules() if is_partial(path)]:
            yield part, summed


def sum_output(module: nn.Module, add: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Have a module's output added up over all ranks."""

    def add_up(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return add(output)
        return (add(output[0]), *output[1:])  # gpt-oss returns its router's scores, too

    module.register_forward_hook(add_up)
