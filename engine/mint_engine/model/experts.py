"""Routed experts with each row's own adapter, registered with transformers under the name "mint".

A router gives each token a few experts. Pairs of token and expert are sorted by expert, so that an expert's weights
are read once, and then by slot, so that an adapter's are too. `expert_lora` adds the adapters to every expert.

With several ranks, each holds some of the experts and computes only their pairs; the ranks' sums are added up later.

Letters in shapes: T tokens, k experts of a token, P pairs (T k on a single rank), E experts, H hidden, I an expert's
inner size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from mint_contracts.cuts import Cut
from mint_engine.adapters.adapter import Module
from mint_engine.kernels.library import Kernels
from mint_engine.model.expert_lora import ExpertRows, Pairs, add_expert_lora, sort_pairs
from mint_engine.model.expert_product import in_one, multiply
from mint_engine.model.routes import RouteShape
from mint_engine.residency.slots import Slots

NAME = "mint"

# With several ranks on GPUs: up to so many pairs, those of other ranks' experts stay among a rank's own. Leaving them
# out means to wait until they are counted, in each layer; having more would only take memory, a row for each.
_SPARES = 4096


@dataclass(frozen=True)
class ExpertModules:
    """One layer's experts as slots know them: the ones held here, and the modules of their linears, if adapted."""

    slots: Slots
    held: Cut
    whole: bool  # whether these are all of them
    gate: int | None
    up: int | None
    down: int | None
    kernels: Kernels | None  # set if they compute the base's products too; gradients do not pass through them


def register() -> None:
    """Register "mint" with transformers."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, forward)


def is_stack(module: nn.Module) -> bool:
    """Whether a module stacks gated experts in tensors, as transformers' `use_experts_implementation` does."""
    stacked = all(getattr(getattr(module, name, None), "ndim", 0) == 3 for name in ("gate_up_proj", "down_proj"))
    return stacked and bool(getattr(module, "has_gate", False)) and not getattr(module, "has_post_expert_norm", False)


def route_shape(model: PreTrainedModel) -> RouteShape | None:
    """Return the shape of what a model's routers choose; None if it has none."""
    stacks: list[Any] = [module for module in model.modules() if is_stack(module)]
    if not stacks:
        return None
    each = int(model.config.get_text_config().num_experts_per_tok)
    return RouteShape(len(stacks), each, int(stacks[0].num_experts))


def stacked_modules(path: str, experts: Any) -> dict[str, Module]:
    """Return the linears of the experts at `path`, as adapters target them."""
    count, *sizes = experts.gate_up_proj.shape
    hidden, both = sizes if experts.is_transposed else reversed(sizes)
    inner = both // 2
    halves = ((0, inner, 1), (inner, both, 1)) if experts.is_concatenated else ((0, both, 2), (1, both, 2))
    fused, down = f"{path}.gate_up_proj", f"{path}.down_proj"
    return {
        f"{path}.gate_proj": Module(f"{path}.gate_proj", hidden, inner, count, fused, halves[0]),
        f"{path}.up_proj": Module(f"{path}.up_proj", hidden, inner, count, fused, halves[1]),
        down: Module(down, inner, hidden, count, down),
    }


def forward(experts: Any, hidden: torch.Tensor, routes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """hidden [T, H], each token's experts [T, k] and their weights [T, k] -> [T, H]."""
    rows: ExpertRows | None = experts.mint_current.expert_rows
    if experts.mint_current.routes is not None:
        experts.mint_current.routes.append(routes)
    modules: ExpertModules = experts.mint_modules
    tokens, each = routes.shape
    pairs = sort_pairs(routes, rows, modules.held, whole=modules.whole, spares=_SPARES if in_one(experts) else 0)
    if not pairs.order.shape[0]:
        return torch.zeros_like(hidden)
    x = hidden.index_select(0, pairs.order // each)  # [P, H]
    y = multiply(experts, "gate_up_proj", x, pairs)
    if rows is not None:
        _add_gate_up(y, x, modules, rows, pairs, concatenated=experts.is_concatenated)
    inner = experts._apply_gate(y)  # [P, I]
    out = multiply(experts, "down_proj", inner, pairs)
    if rows is not None:
        add_expert_lora([(out, modules.down)], inner, modules.slots, rows, pairs)
    out = out * weights.reshape(-1, 1).index_select(0, pairs.order)
    if pairs.spare is not None:
        out = out.masked_fill(pairs.spare[:, None], 0)  # which nobody has computed
    every = out.new_zeros(tokens * each, out.shape[1]).index_copy_(0, pairs.order, out)
    return every.view(tokens, each, -1).sum(dim=1).to(hidden.dtype)


def _add_gate_up(
    y: torch.Tensor, x: torch.Tensor, modules: ExpertModules, rows: ExpertRows, pairs: Pairs, *, concatenated: bool
) -> None:
    inner = y.shape[1] // 2
    if concatenated:
        add_expert_lora([(y[:, :inner], modules.gate), (y[:, inner:], modules.up)], x, modules.slots, rows, pairs)
        return
    for at, module in enumerate((modules.gate, modules.up)):  # gate and up are interleaved in y's columns
        added = torch.zeros(y.shape[0], inner, dtype=y.dtype, device=y.device)
        add_expert_lora([(added, module)], x, modules.slots, rows, pairs)
        y[:, at::2] += added
