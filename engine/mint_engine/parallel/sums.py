"""Has the ranks' partial sums added up where a decoder layer needs them whole: twice, before the residual stream.

A part of a layer without experts adds up right behind its linears that are cut by inputs. Where experts and a shared
network give their parts of one sum, it is added up once, at the end of the part of the layer that holds them all.
Norms over all heads add up their squares beside that.
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
    """For a model that is cut already, and whose modules stay from now on."""
    for _, summed in shared_parts(model):
        for module in summed:
            sum_output(module, group.sum)
    for norm in shared_norms(model):
        norm.add = group.sum


def shared_parts(model: PreTrainedModel) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """The parts of decoder layers that ranks share out, and those modules of each whose outputs they add up."""
    for part in (part for _, layer in layers_of(model) for part in layer.children()):
        if any(is_stack(module) for module in part.modules()):
            yield part, [part]
        elif summed := [module for path, module in part.named_modules() if is_partial(path)]:
            yield part, summed


def sum_output(module: nn.Module, add: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Have what a module gives added up."""

    def add_up(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return add(output)
        return (add(output[0]), *output[1:])  # gpt-oss gives its router's scores too

    module.register_forward_hook(add_up)
