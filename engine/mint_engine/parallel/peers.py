"""Where one rank of an engine meets the others: in memory within own kernels, in a group between torch's modules."""

from dataclasses import dataclass

from mint_engine.parallel.group import Group
from mint_engine.parallel.shared_memory import Meeting
from mint_engine.parallel.shares import Share


@dataclass(frozen=True)
class Peers:
    """Both ways; which of them a rank takes is up to its pass, and all ranks of an engine have the same passes.

    One pass may serve and another train. Each way has memory of its own, so that neither writes over sums that a
    slower rank still reads in the other.
    """

    group: Group
    meeting: Meeting | None = None  # None: on several nodes, which have no memory in common
    meetings: tuple[Meeting, ...] = ()  # all that there are

    @property
    def share(self) -> Share:
        """What this rank holds."""
        return self.group.share

    @property
    def broken(self) -> bool:
        """See `Meeting`."""
        return any(each.broken for each in self.meetings)

    def end(self) -> None:
        """Nobody waits for anybody any more, for good."""
        for each in self.meetings:
            each.end()
