"""PEFT's layout of adapters on stacked experts: one pair of tensors for all experts of a parameter.

PEFT wraps a parameter named in `target_parameters` (peft 0.21, tuners/lora/layer.py, ParamWrapper): A is
[E r, in], expert after expert, and B is [out, r E], an expert's column every E. `gate_up_proj` is one parameter, so
gate and up share A. Where both parameters of a layer's experts are targeted, the wrappers nest, and tensors of the
first, `gate_up_proj`, are named "...experts.base_layer", those of `down_proj` "...experts".
"""

from collections.abc import Mapping

import torch

from mint_contracts.errors import RankTooLarge, ShapeMismatch
from mint_contracts.targets import is_targeted
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.peft_config import LoraConfig


def told_parameters(config: LoraConfig, modules: Mapping[str, Module]) -> dict[str, tuple[Module, ...]]:
    """The parameters that a config targets by name: path to the modules that are parts of it, in their order."""
    found: dict[str, tuple[Module, ...]] = {}
    for module in modules.values():
        if module.part_of and is_targeted(module.part_of, config.parameters):
            found[module.part_of] = (*found.get(module.part_of, ()), module)
    return found


def tensor_paths(parameters: Mapping[str, tuple[Module, ...]]) -> dict[str, str]:
    """What PEFT names the tensors of each parameter: name to the parameter's path."""
    by_experts: dict[str, list[str]] = {}
    for path in parameters:
        by_experts.setdefault(path.rpartition(".")[0], []).append(path)
    names = {}
    for experts, paths in by_experts.items():
        for depth, path in enumerate(reversed(paths)):
            names[experts + ".base_layer" * depth] = path
    return names


def check_stack(
    config: LoraConfig,
    together: tuple[Module, ...],
    max_rank: int,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    subject: str,
) -> None:
    """Do A and B of these shapes fit the modules of one parameter? Raises RankTooLarge or ShapeMismatch."""
    first = together[0]
    name, count = first.part_of, first.experts
    rank = config.rank_of(name)
    if rank > max_rank:
        raise RankTooLarge(subject, f"has rank {rank} at {name}; the base model takes up to {max_rank}")
    out = sum(each.out_features for each in together)
    for half, shape, want in zip("AB", shapes, ((count * rank, first.in_features), (out, count * rank)), strict=True):
        if shape != want:
            raise ShapeMismatch(
                subject, f"has lora_{half} {list(shape)} at {name} where the base model and rank need {list(want)}"
            )


def unstack(a: torch.Tensor, b: torch.Tensor, module: Module) -> tuple[torch.Tensor, torch.Tensor]:
    """A [E r, in] and B [out, r E] of a parameter -> one module's A [E, r, in] and B transposed [E, r, out]."""
    part = b[module.outputs]
    return a.view(module.experts, -1, a.shape[1]), part.view(part.shape[0], -1, module.experts).permute(2, 1, 0)
