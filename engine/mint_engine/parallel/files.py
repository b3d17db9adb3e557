"""The anonymous files that the ranks of one node share."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Files:
    """The files' descriptors."""

    memory: int  # where own kernels meet
    group: int  # where a group meets on a CPU, and where ranks on GPUs find each other

    def close(self) -> None:
        """Close the descriptors; the files exist as long as any process has them open or mapped."""
        for descriptor in (self.memory, self.group):
            os.close(descriptor)


def make_files() -> Files:
    """Create new, empty files."""
    return Files(os.memfd_create("mint-ranks"), os.memfd_create("mint-group"))
