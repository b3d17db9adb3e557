"""Check that all ranks use passes of one kind: different kinds would wait for different sums, or sum other things."""

from collections.abc import Mapping, Sequence

from mint_contracts.errors import UnsupportedBase
from mint_engine.parallel.messages import Passes


def check_alike(does: str, own: str, others: Mapping[int, str]) -> None:
    """Raise UnsupportedBase if any of `others` (by rank) is of another kind than `own`; variants may differ."""
    for rank, other in sorted(others.items()):
        if _kind(other) != _kind(own):
            raise UnsupportedBase(
                "tensorParallelSize",
                f"is more than 1, and rank {rank} {does} by {other}, rank 0 by {own}; give the engine "
                "nodes of one kind (spec.engine.nodeSelector), or set it to 1",
            )


def least_room(passes: Sequence[Passes]) -> int | None:
    """Return the bytes that the fullest of these ranks' GPUs has left for updates; None on CPUs."""
    return min((each.room for each in passes if each.room is not None), default=None)


def _kind(name: str) -> str:
    return name.partition(" ")[0]
