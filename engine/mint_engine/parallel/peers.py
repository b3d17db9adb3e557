"""How one rank of an engine meets the others: own kernels in shared memory, torch's modules in a group."""

from dataclasses import dataclass

from mint_engine.parallel.group import Group
from mint_engine.parallel.shared_memory import SharedMemory
from mint_engine.parallel.shares import Share


@dataclass(frozen=True)
class Peers:
    """Both ways to meet. A rank's pass decides which one it uses, and all ranks of an engine have the same passes.

    One pass may serve and another train. Each way has separate memory, so that neither overwrites sums that a slower
    rank still reads in the other.
    """

    group: Group
    memory: SharedMemory | None = None  # own kernels'; None: on several nodes, which share none
    memories: tuple[SharedMemory, ...] = ()  # all of this rank's, the group's included

    @property
    def share(self) -> Share:
        """The share of the base that this rank holds."""
        return self.group.share

    @property
    def broken(self) -> bool:
        """See `SharedMemory`."""
        return any(each.broken for each in self.memories)

    def end(self) -> None:
        """End all waiting between ranks, for good."""
        for each in self.memories:
            each.end()
