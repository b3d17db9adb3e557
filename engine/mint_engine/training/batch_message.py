"""Converts an update's batch to and from the message that rank 0 sends to the other ranks."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mint_engine.parallel.messages import Compute
from mint_engine.training.batch import Batch, Held, Segment, Wanted
from mint_engine.training.pieces import Tree


def to_message(batch: Batch, wanted: Sequence[Wanted], *, learn: bool) -> Compute:
    """Return the message for the other ranks."""
    routes = batch.routes
    return Compute(
        tokens=_bytes(batch.tokens),
        positions=_bytes(batch.positions),
        trees=[(tree.row, tree.trunk, tree.branches) for tree in batch.trees],
        segments=[(each.start, each.stop, each.policy) for each in batch.segments],
        routes=b"" if routes is None else _bytes(routes),
        routes_shape=() if routes is None else tuple(routes.shape),
        wanted=[
            (each.start, each.stop, _bytes(each.rows), _bytes(each.targets), each.temperature, each.whole)
            for each in wanted
        ],
        learn=learn,
    )


def from_message(message: Compute, held: Mapping[int, Held], device: torch.device) -> tuple[Batch, list[Wanted]]:
    """Return a message's batch, with this rank's parts of the policies."""
    batch = Batch(
        _tensor(message.tokens, device),
        _tensor(message.positions, device),
        tuple(Tree(row, trunk, tuple(branches)) for row, trunk, branches in message.trees),
        tuple(Segment(start, stop, number, held[number].parts) for start, stop, number in message.segments),
        _tensor(message.routes, device).view(*message.routes_shape) if message.routes_shape else None,
    )
    wanted = [
        Wanted(start, stop, _tensor(rows, device), _tensor(targets, device), temperature, whole)
        for start, stop, rows, targets, temperature, whole in message.wanted
    ]
    return batch, wanted


def _bytes(whole: torch.Tensor) -> bytes:
    return whole.cpu().numpy().tobytes()


def _tensor(data: bytes, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.int64).copy()).to(device)
