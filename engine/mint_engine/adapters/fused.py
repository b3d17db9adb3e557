"""PEFT's layout of adapters on stacked experts: one pair of tensors for all experts of a parameter.

PEFT wraps a parameter named in `target_parameters` (peft 0.21, tuners/lora/layer.py, ParamWrapper): A is
[E r, in], expert after expert, and B is [out, r E], with an expert's columns E apart. `gate_up_proj` is one
parameter, so gate and up share A. If both parameters of a layer's experts are targeted, the wrappers nest, and the
tensors of the first, `gate_up_proj`, are named "...experts.base_layer", those of `down_proj` "...experts".

The weight of a plain linear can be a targeted parameter too ("...shared_experts.up_proj.weight"); its tensors are
named and shaped as any linear's. On bases with stacked experts PEFT has no other way to adapt the networks beside
them: it takes `up_proj` and the like in `target_modules` for the experts'
(utils/transformers_weight_conversion.py).
"""

from collections.abc import Iterable, Mapping, Sequence

import torch

from mint_contracts.errors import RankTooLarge, ShapeMismatch
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.peft_config import LoraConfig


def targeted_parameters(config: LoraConfig, modules: Mapping[str, Module]) -> dict[str, tuple[Module, ...]]:
    """Return the parameters that a config targets by name: {path: the modules that are parts of it, in order}."""
    found: dict[str, tuple[Module, ...]] = {}
    for module in modules.values():
        if module.part_of and config.names(module.part_of):
            found[module.part_of] = (*found.get(module.part_of, ()), module)
    return found


def weight_of(path: str) -> str:
    """Return the name of a plain linear's weight parameter."""
    return f"{path}.weight"


def pattern_name(config: LoraConfig, path: str) -> str:
    """Return the name by which the config's patterns match a linear: its weight's, if targeted, else its path."""
    weight = weight_of(path)
    return weight if config.names(weight) else path


def tensor_paths(parameters: Iterable[str]) -> dict[str, str]:
    """Return PEFT's names for the parameters' tensors: {name: the parameter's path}."""
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
    """Check that A and B of these shapes fit the modules of one parameter. Raises RankTooLarge or ShapeMismatch."""
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
    """Return one module of a parameter: A [E r, in], B [out, r E] -> A [E, r, in], B transposed [E, r, out]."""
    part = b[module.outputs]
    return a.view(module.experts, -1, a.shape[1]), part.view(part.shape[0], -1, module.experts).permute(2, 1, 0)


def stack(
    parts: Sequence[tuple[Module, torch.Tensor, torch.Tensor]], outputs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Invert `unstack`: return a parameter's A [E r, in] and B [outputs, r E] from its modules' A and B transposed.

    Modules that share one A keep it. Otherwise the A are concatenated, and each module's rows of B are zero for the
    others' ranks, as when PEFT itself joins experts' linears.
    """
    _, a, b = parts[0]
    shared = all(torch.equal(a, other) for _, other, _ in parts)
    wide = a if shared else torch.cat([each for _, each, _ in parts], 1)  # [E, r, in]
    count, rank, _ = wide.shape
    whole = b.new_zeros(outputs, rank, count)
    start = 0
    for module, _, each in parts:
        end = start + each.shape[1]
        whole[module.outputs, start:end] = each.permute(2, 1, 0)
        start = 0 if shared else end
    return wide.reshape(count * rank, -1).contiguous(), whole.view(-1, rank * count)
