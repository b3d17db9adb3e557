"""Where one rank of an engine meets the others: in memory within own kernels, in a group between torch's modules."""

import os
from dataclasses import dataclass

from mint_engine.parallel.group import Group
from mint_engine.parallel.meeting import Meeting
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


@dataclass(frozen=True)
class Files:
    """Descriptors of the files without a name that ranks have in common."""

    memory: int  # in which own kernels meet
    group: int  # in which a group meets on a CPU, and by which ranks on GPUs find together

    def close(self) -> None:
        """The files stay as long as anybody has them open, or mapped."""
        for descriptor in (self.memory, self.group):
            os.close(descriptor)


def make_files() -> Files:
    """New ones, empty yet."""
    return Files(os.memfd_create("mint-ranks"), os.memfd_create("mint-group"))
