"""Reads a layer's routed experts from transformers' modules for the lean pass, or refuses them.

Their weights, which make up most of a base, are used in place and not packed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from mint_engine.kernels.constants import MAX_EXPERTS
from mint_engine.kernels.expert_structs import Experts, GroupedRouter, Stack
from mint_engine.kernels.library import Kernels, find_kernels
from mint_engine.kernels.linear_structs import NO_TARGETS, Linear
from mint_engine.model.expert_product import rows_of
from mint_engine.model.llama_like import GROUPED, Unlike, check_experts, router_of
from mint_engine.model.quantised_experts import QuantisedWeight
from mint_engine.residency.large_pages import LargePages

# Families with float32 routers, which choose by a sigmoid and a bias, or by a softmax.
_SOFTMAX = frozenset({"ernie4_5_moe", "hunyuan_v1_moe"})
_GROUPED = GROUPED | _SOFTMAX | {"minimax_m2"}
# Families whose chosen experts' weights add up to one although no configuration says so.
_NORMALISED = _SOFTMAX | {"mixtral", "gpt_oss", "minimax_m2", "granitemoe"}
_ROUNDED = frozenset({"qwen3_moe", "gpt_oss", "ernie4_5_moe", "granitemoe"})


@dataclass(frozen=True)
class ExpertReader:
    """`first` is the first expert held; `targets` finds modules by path and first column, see `Stack`."""

    kernels: Kernels
    memory: LargePages
    family: str
    first: int
    targets: Callable[[Mapping[str, int], int, int], torch.Tensor]

    def read(self, path: str, mlp: Any) -> Experts:
        """Read the block at `path`, which has experts and their router. Raises Unlike."""
        experts, router = mlp.experts, router_of(mlp)
        check_experts(experts)
        if experts.num_experts > MAX_EXPERTS:
            raise Unlike(f"{experts.num_experts} experts fit no kernel")
        gate_up, down = (_stack(experts, name) for name in ("gate_up_proj", "down_proj"))
        _, both, hidden = gate_up.shape
        columns = {f"{path}.experts.gate_proj": 0, f"{path}.experts.up_proj": both // 2}
        biases = (experts.gate_up_proj_bias, experts.down_proj_bias) if experts.has_bias else (None, None)
        return Experts(
            router=self._grouped(mlp, router) if self.family in _GROUPED else self._router(self.kernels, router),
            top_k=int(router.top_k),
            first=self.first,
            normalised=self.family in _NORMALISED or bool(router.norm_topk_prob),
            rounded=self.family in _ROUNDED,
            gate_up=replace(gate_up, targets=self.targets(columns, hidden, both // 2)),
            down=replace(down, targets=self.targets({f"{path}.experts.down_proj": 0}, both // 2, hidden)),
            gate_up_bias=biases[0],
            down_bias=biases[1],
            interleaved=not experts.is_concatenated,
        )

    def _router(self, kernels: Kernels, router: Any) -> Linear:
        return kernels.pack(router.weight, getattr(router, "bias", None), NO_TARGETS, self.memory)

    def _grouped(self, mlp: Any, router: Any) -> GroupedRouter:
        weight = router.wg.weight if self.family == "hunyuan_v1_moe" else router.weight
        kernels = find_kernels(torch.float32, weight.device)
        assert kernels is not None  # noqa: S101 - those of the base's dtype are in the same library
        return GroupedRouter(
            router=kernels.pack(weight.float(), None, NO_TARGETS, self.memory),
            bias=self._bias(mlp, router, weight).float().contiguous(),
            groups=int(getattr(router, "num_group", 1)),
            top_groups=int(getattr(router, "topk_group", 1)),
            factor=float(getattr(router, "routed_scaling_factor", 1.0)),
            softmax=self.family in _SOFTMAX,
        )

    def _bias(self, mlp: Any, router: Any, weight: torch.Tensor) -> torch.Tensor:
        """Return what is added to probabilities [E] when experts are chosen by them."""
        if self.family == "hunyuan_v1_moe":
            return torch.zeros(weight.shape[0])
        if self.family == "ernie4_5_moe":
            bias: torch.Tensor = router.moe_statics.e_score_correction_bias.detach()[0]
        else:
            bias = (mlp if self.family == "minimax_m2" else router).e_score_correction_bias
        return bias


def _stack(experts: Any, name: str) -> Stack:
    """Return a linear of all experts in output-major layout, without targets."""
    weight = getattr(experts, name)
    if isinstance(weight, QuantisedWeight):
        if (stack := weight.coded()) is None:
            raise Unlike("its experts stay quantised as no kernel reads them")
        return stack
    rows = rows_of(experts, name)
    if not rows.is_contiguous():
        raise Unlike("its experts do not lie one after another")
    return Stack(rows.shape, rows)
