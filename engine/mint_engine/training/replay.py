"""Rollout routing replay, R3 (arXiv 2510.11370): an update sends a token to the experts that it went to when sampled.

Sampler and trainer round differently, and where a router is near a tie they would send a token to other experts: then
their log-probabilities differ by more than any rounding. Only the choice is replayed. Weights of the chosen come from
the router's scores of now, by the router's own code, so that gradients flow through them.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mint_engine.training.batch import Batch
from mint_engine.training.delta import Current


def prepare(block: Any, layer: int, experts: int, current: Current) -> None:
    """Let the router of a block of experts, the `layer`-th with any, look for routes in what is being computed.

    A router that goes by another name than transformers' families use stays as it is: nothing is replayed there.
    """
    router = getattr(block, "gate", None) or getattr(block, "router", None)
    if router is not None:
        router.forward = partial(_route, router.forward, layer, experts, current)


def _route(forward: Any, layer: int, experts: int, current: Current, *told: Any, **named: Any) -> Any:
    with replaying(current.batch, layer, experts):
        return forward(*told, **named)


def replaying(batch: Batch | None, layer: int, experts: int) -> AbstractContextManager[object]:
    """While it lasts, the router of the `layer`-th block of experts chooses what a batch's rollouts took."""
    if batch is None or batch.routes is None:
        return nullcontext()
    return _Choice(batch.routes[:, layer], experts)


class _Choice(TorchFunctionMode):
    """While it lasts, the best k of every token's scores [T, E] are those that were chosen [T, k], but for -1."""

    def __init__(self, chosen: torch.Tensor, experts: int) -> None:
        super().__init__()
        self._chosen, self._shape = chosen, (chosen.shape[0], experts)

    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        found = function(*given, **(named or {}))
        # Routers by groups of experts also ask for the best of each group, in other shapes.
        if function not in (torch.topk, torch.Tensor.topk) or tuple(given[0].shape) != self._shape:
            return found
        chosen = torch.where(self._chosen < 0, found[1], self._chosen)
        return torch.return_types.topk((given[0].gather(1, chosen), chosen))
