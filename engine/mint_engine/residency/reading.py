"""Reads mapped packed files before they are used: touching a lost block of a mapping kills the process (SIGBUS)."""

import torch

from mint_contracts.errors import SourceUnavailable
from mint_engine.adapters.packed import Packed
from mint_engine.residency.remapping import populate, put_file, reserve


class LostBlock(SourceUnavailable):
    """This engine's own disk has lost part of a file. This says nothing about the adapter's source."""

    @property
    def reason(self) -> str:
        """The public reason: to clients, the adapter is temporarily unavailable."""
        return SourceUnavailable.__name__


def read(packed: Packed) -> torch.Tensor:
    """Return the run, after reading all of it into memory. Raises LostBlock if a part of its file cannot be read."""
    if packed.file is not None:
        try:
            populate(packed.run.data_ptr(), packed.run.nbytes)
        except OSError as error:
            raise unreadable(packed, error) from error
    return packed.run


def unreadable(packed: Packed, error: OSError) -> LostBlock:
    """Return the error for a file of this engine's disk that cannot be read."""
    reason = f"could not be read from this engine's disk ({error.strerror}); retrying"
    return LostBlock(f"revision {packed.revision}", reason)


def is_readable(descriptor: int, nbytes: int) -> bool:
    """Return whether a file's first `nbytes` can be read; they are then in the page cache for the next reader."""
    place = reserve(nbytes)
    try:
        put_file(place.ctypes.data, descriptor, nbytes)
    except OSError:
        return False
    return True
