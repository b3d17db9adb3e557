"""Finds the linear modules that adapters may target, and puts multi-LoRA ones in their place."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from mint_contracts.errors import UnsupportedBase
from mint_engine.adapter import Module
from mint_engine.lora import Rows, add_lora
from mint_engine.slots import Slots


class Current:
    """What the step in progress computes; its modules look here, because a linear takes one argument only."""

    rows: Rows | None = None


class LoraLinear(nn.Module):
    """A linear module of the base that adds each row's own adapter."""

    def __init__(self, linear: nn.Linear, slots: Slots, module: int, current: Current) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight = linear.weight
        self.bias = linear.bias
        self._slots = slots
        self._module = module
        self._current = current

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [1, T, in] -> [1, T, out]."""
        y = functional.linear(x, self.weight, self.bias)
        rows = self._current.rows
        if rows is not None:
            add_lora(y.view(-1, self.out_features), x.reshape(-1, self.in_features), self._slots, self._module, rows)
        return y


def find_modules(model: PreTrainedModel, target_modules: Iterable[str] = ()) -> dict[str, Module]:
    """Every nn.Linear of the decoder layers by path, or only those whose last name is in `target_modules`.

    Raises UnsupportedBase for a model without decoder layers and for a target that it lacks.
    """
    prefix = _layers_prefix(model)
    linears = {
        path: Module(path, linear.in_features, linear.out_features)
        for path, linear in model.named_modules()
        if isinstance(linear, nn.Linear) and path.startswith(prefix)
    }
    offered = {path.rpartition(".")[2] for path in linears}
    wanted = set(target_modules) or offered
    if missing := sorted(wanted - offered):
        raise UnsupportedBase(
            "targetModules",
            f"names {', '.join(missing)}, which this base lacks; it offers {', '.join(sorted(offered))}",
        )
    return {path: module for path, module in linears.items() if path.rpartition(".")[2] in wanted}


def replace_modules(model: PreTrainedModel, slots: Slots) -> Current:
    """Swap each module of `slots` for a LoraLinear with the same weights; returns what tells them their rows."""
    current = Current()
    for path, module in slots.index.items():
        linear = cast(nn.Linear, model.get_submodule(path))
        model.set_submodule(path, LoraLinear(linear, slots, module, current))
    return current


def _layers_prefix(model: PreTrainedModel) -> str:
    """Where the decoder layers are, e.g. "model.layers."."""
    count = model.config.get_text_config().num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and path.rpartition(".")[2] == "layers" and len(module) == count:
            return f"{path}."
    raise UnsupportedBase(type(model).__name__, "has no decoder layers that adapters could target")
