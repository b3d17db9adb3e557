"""Where one rank of an engine meets the others: in memory within own kernels, in a group between torch's modules."""

import os
from dataclasses import dataclass

from mint_engine.parallel.group import Group
from mint_engine.parallel.meeting import Meeting
from mint_engine.parallel.shares import Share


@dataclass(frozen=True)
class Peers:
    """Both ways; which of them a rank takes is up to its pass, and all ranks of an engine have the same pass."""

    meeting: Meeting
    group: Group

    @property
    def share(self) -> Share:
        """What this rank holds."""
        return self.group.share


@dataclass(frozen=True)
class Files:
    """Descriptors of the files without a name that ranks have in common."""

    memory: int  # of the meeting
    group: int  # by which ranks on GPUs find together

    def close(self) -> None:
        """The files stay as long as anybody has them open, or mapped."""
        for descriptor in (self.memory, self.group):
            os.close(descriptor)


def make_files() -> Files:
    """New ones, empty yet."""
    return Files(os.memfd_create("mint-ranks"), os.memfd_create("mint-group"))
