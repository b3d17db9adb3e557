"""Whether all ranks compute by passes of one kind: those of two would wait for other sums, or add up other things."""

from collections.abc import Mapping

from mint_contracts.errors import UnsupportedBase


def check_alike(does: str, own: str, others: Mapping[int, str]) -> None:
    """Raise UnsupportedBase where one of the others', by rank, is of another kind; its variant may be another."""
    for rank, other in sorted(others.items()):
        if _kind(other) != _kind(own):
            raise UnsupportedBase(
                "tensorParallelSize",
                f"is more than 1, and rank {rank} {does} by {other}, rank 0 by {own}; give the engine "
                "nodes of one kind (spec.engine.nodeSelector), or set it to 1",
            )


def _kind(name: str) -> str:
    return name.partition(" ")[0]
