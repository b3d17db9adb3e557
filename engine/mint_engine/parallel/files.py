"""The files without a name that ranks of one node have in common."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Files:
    """Their descriptors."""

    memory: int  # in which own kernels meet
    group: int  # in which a group meets on a CPU, and by which ranks on GPUs find together

    def close(self) -> None:
        """The files stay as long as anybody has them open, or mapped."""
        for descriptor in (self.memory, self.group):
            os.close(descriptor)


def make_files() -> Files:
    """New ones, empty yet."""
    return Files(os.memfd_create("mint-ranks"), os.memfd_create("mint-group"))
