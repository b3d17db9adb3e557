"""PEFT's layout of adapters on stacked experts: one pair of tensors for all experts of a parameter.

PEFT wraps a parameter named in `target_parameters` (peft 0.21, tuners/lora/layer.py, ParamWrapper): A is
[E r, in], expert after expert, and B is [out, r E], with an expert's columns E apart. `gate_up_proj` is one
parameter, so gate and up share A. If both parameters of a layer's experts are targeted, the wrappers nest, and the
tensors of the first, `gate_up_proj`, are named "...experts.base_layer", those of `down_proj` "...experts".

Before peft 0.19.1, A and B were `turned` for parameters that are stored output-major, as those of most families are:
A was [E r, out] and B [in, r E] (https://github.com/huggingface/peft/pull/3165). In 0.19.0 all others' were, too.

The weight of a plain linear can be a targeted parameter too ("...shared_experts.up_proj.weight"); its tensors are
named and shaped as any linear's. On bases with stacked experts PEFT has no other way to adapt the networks beside
them: it takes `up_proj` and the like in `target_modules` for the experts'
(utils/transformers_weight_conversion.py).
"""

from collections.abc import Iterable, Mapping, Sequence

import torch

from mint_contracts.errors import RankTooLarge, ShapeMismatch, UnsupportedAdapter
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.peft_config import LoraConfig

Shapes = tuple[tuple[int, ...], tuple[int, ...]]  # of A and B
SINCE = 0, 19, 1  # the version of peft since which nothing is turned


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


def find_turned(
    config: LoraConfig, parameters: Mapping[str, tuple[Module, ...]], shapes: Mapping[str, Shapes], subject: str
) -> frozenset[str]:
    """Return the parameters whose A and B are turned.

    Their shapes show it, and those of the others for square ones. Raises UnsupportedAdapter if nothing does, and the
    version of peft that wrote them might have done either; those before 0.18 do not say which they are.
    """
    sizes = {path: (parameters[path][0].in_features, _outputs(parameters[path])) for path in shapes}
    uneven = {path: shapes[path][0][1:] == (out,) for path, (wide, out) in sizes.items() if wide != out}
    turned, square = {path for path in uneven if uneven[path]}, sizes.keys() - uneven.keys()
    if square and not uneven and config.version < SINCE:
        named, since = (".".join(map(str, version)) for version in (config.version, SINCE))
        raise UnsupportedAdapter(
            subject,
            f"was written by peft {named or 'before 0.18 (it has no peft_version)'}, which exchanged A and B of some "
            f"parameters; {min(square)} has as many inputs as outputs, so that this does not show. Save it in the "
            f"layout of peft {since} and set peft_version to that",
        )
    return frozenset(turned | square if turned and all(uneven.values()) else turned)


def check_stack(
    config: LoraConfig, together: tuple[Module, ...], max_rank: int, shapes: Shapes, subject: str, *, turned: bool
) -> None:
    """Check that A and B of these shapes fit the modules of one parameter. Raises RankTooLarge or ShapeMismatch."""
    first = together[0]
    name, count = first.part_of, first.experts
    rank = config.rank_of(name)
    if rank > max_rank:
        raise RankTooLarge(subject, f"has rank {rank} at {name}; the base model takes up to {max_rank}")
    wide, out = first.in_features, _outputs(together)
    if turned:
        wide, out = out, wide
    for half, shape, want in zip("AB", shapes, ((count * rank, wide), (out, count * rank)), strict=True):
        if shape != want:
            raise ShapeMismatch(
                subject, f"has lora_{half} {list(shape)} at {name} where the base model and rank need {list(want)}"
            )


def unstack(
    a: torch.Tensor, b: torch.Tensor, module: Module, *, turned: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one module of a parameter: A [E r, in], B [out, r E] -> A [E, r, in], B transposed [E, r, out].

    With `turned`, from A [E r, out], B [in, r E].
    """
    apart = a.view(module.experts, -1, a.shape[1]), b.view(b.shape[0], -1, module.experts).permute(2, 1, 0)
    inputs, outputs = reversed(apart) if turned else apart
    return inputs, outputs[:, :, module.outputs]


def _outputs(together: Iterable[Module]) -> int:
    return sum(each.out_features for each in together)


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
