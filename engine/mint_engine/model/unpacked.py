"""Weights of transformers' modules that own kernels have packed for themselves: a second copy of the same size."""

from typing import Any

import torch
from torch import nn

from mint_engine.model.base import Base
from mint_engine.model.modules import is_linear, layers_of


def let_go(base: Base) -> None:
    """Free the weights of the layers' linears and of the head, whose modules compute nothing from then on.

    Weights that kernels use unpacked stay, including those of experts.
    """
    model: Any = base.model  # its embeddings' accessors are not typed
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    linears = [module for _, layer in layers_of(model) for module in layer.modules() if is_linear(module)]
    if head.weight is not embedding.weight:
        linears.append(head)
    for linear in linears:
        linear.weight = nn.Parameter(torch.empty(0, dtype=base.dtype), requires_grad=False)
