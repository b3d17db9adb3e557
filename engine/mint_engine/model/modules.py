"""Finds the modules that adapters may target, and replaces them with multi-LoRA ones."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol, TypeGuard, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from mint_contracts.cuts import Cut
from mint_contracts.errors import UnsupportedBase
from mint_contracts.targets import is_targeted, is_within
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.unused import MODEL
from mint_engine.kernels.library import Kernels, find_kernels
from mint_engine.model.expert_lora import ExpertRows
from mint_engine.model.expert_product import lay_rows
from mint_engine.model.experts import ExpertModules, is_stack, stacked_modules
from mint_engine.model.indexer import rotation_of, select
from mint_engine.model.latent import is_latent, up_projection
from mint_engine.model.paged import Paged
from mint_engine.model.quantised_experts import QuantisedWeight
from mint_engine.residency.slots import Slots


class Adds(Protocol):
    """One step's rows, and a way to add their adapters."""

    def add(self, y: torch.Tensor, x: torch.Tensor, slots: Slots, module: int) -> None:
        """Add every row's adapter to y [T, out], in place, from the input x [T, in] of the `module`-th module."""
        ...


@dataclass(frozen=True)
class CompiledRows:
    """One step's rows in the form that the kernels for CPUs take; gradients do not pass through these."""

    kernels: Kernels
    items: torch.Tensor  # [n, 3] int32, see Kernels.lora

    def add(self, y: torch.Tensor, x: torch.Tensor, slots: Slots, module: int) -> None:
        """See Adds."""
        self.kernels.lora(y, x, self.items, slots, _part(module, x.shape[1], y.shape[1]))


@dataclass
class Current:
    """The step in progress. Modules look it up here, because most are passed only their input."""

    rows: Adds | None = None
    expert_rows: ExpertRows | None = None
    paged: Paged | None = None
    routes: list[torch.Tensor] | None = None  # what routers choose, [T, k] for each layer in order


class LoraLinear(nn.Module):
    """A linear module of the base to which each row adds its own adapter."""

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
        y, rows = functional.linear(x, self.weight, self.bias), self._current.rows
        if rows is None:
            return y
        slots, own = self._slots, x.flatten(0, -2)  # which suits shared experts of no columns, too
        if y.dtype == slots.dtype:
            rows.add(y.view(own.shape[0], self.out_features), own, slots, self._module)
            return y
        added = torch.zeros_like(y, dtype=slots.dtype)  # the base keeps this module in float32
        rows.add(added.view(own.shape[0], self.out_features), own.to(slots.dtype), slots, self._module)
        return y + added


@cache
def _part(module: int, inputs: int, outputs: int) -> torch.Tensor:
    """See Kernels.lora."""
    return torch.tensor([[module, 0, inputs, outputs]])


def find_modules(model: PreTrainedModel, target_modules: Iterable[str] = ()) -> dict[str, Module]:
    """Return every linear of the decoder layers by path, or those that `target_modules` name (see `targets`).

    Experts' linears are stacked, one module for all of a layer's; routers are left out. Raises UnsupportedBase for a
    model without decoder layers and for a target that it lacks.
    """
    prefix = layers_prefix(model)
    linears: dict[str, Module] = {}
    routers = tuple(_router_paths(model))
    for path, module in model.named_modules():
        if path.startswith(prefix):
            if is_linear(module) and not path.startswith(routers):
                linears[path] = Module(path, module.in_features, module.out_features)
            elif is_stack(module):
                linears |= stacked_modules(path, module)
    if not (wanted := set(target_modules)):
        return linears
    names = [module.name for module in linears.values()]
    if missing := sorted(target for target in wanted if not any(is_within(name, target) for name in names)):
        offered = sorted({module.leaf for module in linears.values()})
        raise UnsupportedBase(
            "targetModules", f"names {', '.join(missing)}, which this base lacks; it offers {', '.join(offered)}"
        )
    return {path: module for path, module in linears.items() if is_targeted(module.name, wanted)}


def unused_linears(model: PreTrainedModel) -> frozenset[str]:
    """Return the paths of a vision part's linears, which text never reaches; none for a base without vision."""
    text = layers_prefix(model).removesuffix("layers.")
    linears = (path for path, module in model.named_modules() if is_linear(module))
    return frozenset(path for path in linears if path.startswith(MODEL) and not path.startswith(text))


def _router_paths(model: PreTrainedModel) -> Iterator[str]:
    """Return where routers would be, beside the experts: Hunyuan's and AFMoE's contain a linear."""
    mixtures = (path.rpartition(".")[0] for path, module in model.named_modules() if is_stack(module))
    return (f"{mixture}.{name}." for mixture in mixtures for name in ("gate", "router"))


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes what a linear does: some routers subclass it and return something else."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def replace_modules(model: PreTrainedModel, slots: Slots, held: Cut | None) -> Current:
    """Replace modules that read slots or pages, keeping weights; return the object that tells them of a step.

    `held` are the experts of each layer that are on this rank; None: all.
    Each linear of `slots` becomes a LoraLinear. Stacked experts learn their modules. While there are pages, latent
    attention passes a step's latents on unexpanded, and its indexer chooses among them.
    """
    current = Current()
    for path, at in slots.index.items():
        if not slots.modules[path].experts:
            linear = cast(nn.Linear, model.get_submodule(path))
            model.set_submodule(path, LoraLinear(linear, slots, at, current))
    for path, module in model.named_modules():
        if is_stack(module):
            _prepare_experts(module, path, slots, current, held)
        elif is_latent(module):
            _prepare_latent(module, path, slots, current)
    return current


def _prepare_experts(experts: Any, path: str, slots: Slots, current: Current, held: Cut | None) -> None:
    gate, up, down = (slots.index.get(f"{path}.{name}") for name in ("gate_proj", "up_proj", "down_proj"))
    own = held or Cut(0, int(experts.num_experts))
    kernels = _kernels_for(experts, slots)
    experts.mint_modules = ExpertModules(slots, own, held is None, gate, up, down, kernels)
    experts.mint_current = current


def _kernels_for(experts: Any, slots: Slots) -> Kernels | None:
    """Return kernels that multiply experts' rows by unpacked weights, if they are faster than torch.

    Weights in input-major layout are changed to output-major for them.
    """
    kernels = find_kernels(slots.dtype, slots.device)
    if kernels is None or not kernels.fast_row_major:
        return None
    stacks = experts.gate_up_proj, experts.down_proj
    kept = [each for each in stacks if isinstance(each, QuantisedWeight)]
    if experts.is_transposed and kept:
        return kernels if len(kept) == len(stacks) and all(each.coded() is not None for each in kept) else None
    if experts.is_transposed:
        lay_rows(experts)
    elif not all(isinstance(each, QuantisedWeight) or each.is_contiguous() for each in stacks):
        return None
    return kernels


def _prepare_latent(attention: Any, path: str, slots: Slots, current: Current) -> None:
    attention.mint_up = up_projection(attention, slots, path)
    attention.expand_kv = partial(_keep_latent, attention.expand_kv, current)
    indexer = getattr(attention, "indexer", None)
    if indexer is not None:
        rotation_of(indexer.config.model_type)
        indexer.forward = partial(_choose_pages, indexer, indexer.forward, current)


def _keep_latent(expand: Any, current: Current, latent: torch.Tensor, rotated: torch.Tensor) -> Any:
    return (latent, rotated) if current.paged is not None else expand(latent, rotated)


def _choose_pages(
    indexer: Any, forward: Any, current: Current, hidden: torch.Tensor, compressed: torch.Tensor, angles: Any,
    *others: Any, **options: Any,
) -> Any:  # fmt: skip
    if current.paged is None:
        return forward(hidden, compressed, angles, *others, **options)
    return select(indexer, hidden, compressed, angles, current.paged.of(int(indexer.layer_idx)))


def layers_prefix(model: PreTrainedModel) -> str:
    """Return the path prefix of the decoder layers, e.g. "model.layers."."""
    count = model.config.get_text_config().num_hidden_layers
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and path.rpartition(".")[2] == "layers" and len(module) == count
    }
    if not found:
        raise UnsupportedBase(type(model).__name__, "has no decoder layers that adapters could target")
    text = set(cast(Any, model).get_decoder().modules())  # a vision tower may have as many layers, and come first
    return f"{min(found, key=lambda path: found[path] not in text)}."


def decoder_of(model: PreTrainedModel) -> Any:
    """Return the module that holds the decoder layers and the embedding. Raises as `layers_prefix` does."""
    return model.get_submodule(layers_prefix(model).removesuffix(".layers."))


def layers_of(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield the decoder layers by path, e.g. "model.layers.0", in order. Raises as `layers_prefix` does."""
    prefix = layers_prefix(model)
    for name, layer in model.get_submodule(prefix.rstrip(".")).named_children():
        yield prefix + name, layer
