"""Rollout routing replay, R3 (arXiv 2510.11370): an update routes a token to the same experts as when it was sampled.

Sampler and trainer round differently; if a router is near a tie, they would choose different experts for a token, and
its log-probabilities would differ by more than rounding explains. Only the choice is replayed: the router's own code
computes the chosen experts' weights from its current scores, so that gradients flow through them.
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
    """Make a block of experts, the `layer`-th of them, use the routes of the batch being computed.

    This works for any router that calls topk on its scores. Others are left unchanged: nothing is replayed there,
    which is logged, and only a loss's ratio band guards against tokens that are routed differently.
    """
    block.forward = partial(_compute, block.forward, type(block).__name__, layer, experts, current)


def _compute(
    forward: Callable[..., Any], kind: str, layer: int, experts: int, current: Current, *arguments: Any, **named: Any
) -> Any:
    with replaying(current.batch, layer, experts, kind):
        return forward(*arguments, **named)


def replaying(batch: Batch | None, layer: int, experts: int, kind: str) -> AbstractContextManager[object]:
    """Return a context in which the router of the `layer`-th block of experts chooses a batch's recorded routes.

    `kind` names the block in a warning if its router cannot be replayed.
    """
    if batch is None or batch.routes is None:
        return nullcontext()
    return _Choice(batch.routes[:, layer], experts, kind)


@cache
def _tell_missed(kind: str) -> None:
    """Log this once, not for every layer of every update."""
    _log.warning("routes_not_replayed", block=kind, why="its router asks for no best k of its scores")


class _Choice(TorchFunctionMode):
    """While active, topk of every token's scores [T, E] returns the recorded experts [T, k], except at -1."""

    def __init__(self, chosen: torch.Tensor, experts: int, kind: str) -> None:
        super().__init__()
        self._chosen, self._shape, self._kind = chosen, (chosen.shape[0], experts), kind
        self._met = False

    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        found = function(*given, **(named or {}))
        # Grouped routers also call topk for the best of each group, on other shapes.
        if function not in (torch.topk, torch.Tensor.topk) or tuple(given[0].shape) != self._shape:
            return found
        self._met = True
        chosen = torch.where(self._chosen < 0, found[1], self._chosen)
        return torch.return_types.topk((given[0].gather(1, chosen), chosen))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if error is None and not self._met:
            _tell_missed(self._kind)
