"""A batch of an update as rank 0 tells it to the others, and as these understand it."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mint_engine.parallel.messages import Compute
from mint_engine.training.batch import Batch, Held, Segment, Wanted
from mint_engine.training.pieces import Tree


def tell(batch: Batch, wanted: Sequence[Wanted], *, learn: bool) -> Compute:
    """The message."""
    routes = batch.routes
    return Compute(
        tokens=_bytes(batch.tokens),
        positions=_bytes(batch.positions),
        trees=[(tree.row, tree.trunk, tree.branches) for tree in batch.trees],
        segments=[(each.start, each.stop, each.policy) for each in batch.segments],
        routes=b"" if routes is None else _bytes(routes),
        routes_shape=() if routes is None else tuple(routes.shape),
        wanted=[
            (each.start, each.stop, _bytes(each.rows), _bytes(each.targets), each.temperature) for each in wanted
        ],
        learn=learn,
    )


def understand(told: Compute, held: Mapping[int, Held], device: torch.device) -> tuple[Batch, list[Wanted]]:
    """What was told, over what this rank holds of the policies."""
    batch = Batch(
        _tensor(told.tokens, device),
        _tensor(told.positions, device),
        tuple(Tree(row, trunk, tuple(branches)) for row, trunk, branches in told.trees),
        tuple(Segment(start, stop, number, held[number].parts) for start, stop, number in told.segments),
        _tensor(told.routes, device).view(*told.routes_shape) if told.routes_shape else None,
    )
    wanted = [
        Wanted(start, stop, _tensor(rows, device), _tensor(targets, device), temperature)
        for start, stop, rows, targets, temperature in told.wanted
    ]
    return batch, wanted


def _bytes(whole: torch.Tensor) -> bytes:
    return whole.cpu().numpy().tobytes()


def _tensor(told: bytes, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(told, dtype=np.int64).copy()).to(device)
