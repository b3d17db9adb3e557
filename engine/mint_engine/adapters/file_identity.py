"""Identifies the state of a file: differs from that of all other files, and of the file itself after any change."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Identity(NamedTuple):
    """A file's identity from stat. `changed_ns` is the inode's change time, which no program can set back."""

    device: int
    inode: int
    nbytes: int
    changed_ns: int


@dataclass(frozen=True)
class KnownFile:
    """A file as it was when it was opened. Whoever maps it must keep this object while it is mapped."""

    path: Path
    identity: Identity

    @contextmanager
    def open(self) -> Iterator[int | None]:
        """Yield a descriptor for reading, or None if the file is gone or has changed."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # whatever the reason, the caller has the content elsewhere
            yield None
            return
        try:
            yield descriptor if identity_of(os.fstat(descriptor)) == self.identity else None
        finally:
            os.close(descriptor)


def identity_of(about: os.stat_result) -> Identity:
    """Return the identity from a stat result."""
    return Identity(about.st_dev, about.st_ino, about.st_size, about.st_ctime_ns)
