"""Rollout routing replay, R3 (arXiv 2510.11370): an update sends a token to the experts that it went to when sampled.

Sampler and trainer round differently, and where a router is near a tie they would send a token to other experts: then
their log-probabilities differ by more than any rounding. Only the choice is replayed. Weights of the chosen come from
the router's scores of now, by the router's own code, so that gradients flow through them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import structlog
import torch
from torch.overrides import TorchFunctionMode

from mint_engine.training.batch import Batch
from mint_engine.training.delta import Current

_log = structlog.get_logger(__name__)


def prepare(block: Any, layer: int, experts: int, current: Current) -> None:
    """Let a block of experts, the `layer`-th with any, look for routes in what is being computed.

    Whatever its router's name. One that does not ask for the best k of its scores stays as it is: nothing is replayed
    there, which is logged, and a loss's ratio band is what is left against tokens that go to other experts.
    """
    block.forward = partial(_compute, block.forward, type(block).__name__, layer, experts, current)


def _compute(
    forward: Callable[..., Any], kind: str, layer: int, experts: int, current: Current, *arguments: Any, **named: Any
) -> Any:
    with replaying(current.batch, layer, experts, kind):
        return forward(*arguments, **named)


def replaying(batch: Batch | None, layer: int, experts: int, kind: str) -> AbstractContextManager[object]:
    """While it lasts, the router of the `layer`-th block of experts chooses what a batch's rollouts took.

    `kind` names such blocks where none of the choice is found.
    """
    if batch is None or batch.routes is None:
        return nullcontext()
    return _Choice(batch.routes[:, layer], experts, kind)


@cache
def _tell_missed(kind: str) -> None:
    """Once, not with every layer of every update."""
    _log.warning("routes_not_replayed", block=kind, why="its router asks for no best k of its scores")


class _Choice(TorchFunctionMode):
    """While it lasts, the best k of every token's scores [T, E] are those that were chosen [T, k], but for -1."""

    def __init__(self, chosen: torch.Tensor, experts: int, kind: str) -> None:
        super().__init__()
        self._chosen, self._shape, self._kind = chosen, (chosen.shape[0], experts), kind
        self._met = False

    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        found = function(*given, **(named or {}))
        # Routers by groups of experts also ask for the best of each group, in other shapes.
        if function not in (torch.topk, torch.Tensor.topk) or tuple(given[0].shape) != self._shape:
            return found
        self._met = True
        chosen = torch.where(self._chosen < 0, found[1], self._chosen)
        return torch.return_types.topk((given[0].gather(1, chosen), chosen))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if error is None and not self._met:
            _tell_missed(self._kind)
