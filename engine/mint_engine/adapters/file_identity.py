"""Which state of a file: what tells it from all others, and from itself once anything about it has changed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Identity(NamedTuple):
    """As the filesystem tells it. The time is that of any change of the inode, which no program can set back."""

    device: int
    inode: int
    nbytes: int
    changed_ns: int


@dataclass(frozen=True)
class KnownFile:
    """A file as it was when somebody looked into it. Who has it mapped keeps the very object that told so."""

    path: Path
    identity: Identity

    @contextmanager
    def open(self) -> Iterator[int | None]:
        """A descriptor to read it by; None where it is gone, or is another by now."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # whatever the reason, who asks has its content otherwise
            yield None
            return
        try:
            yield descriptor if identity_of(os.fstat(descriptor)) == self.identity else None
        finally:
            os.close(descriptor)


def identity_of(about: os.stat_result) -> Identity:
    """The identity in what `stat` tells."""
    return Identity(about.st_dev, about.st_ino, about.st_size, about.st_ctime_ns)
