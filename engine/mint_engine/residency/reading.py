"""Reading what packed adapters are mapped from: a lost block of a mapping ends the process that reads it (SIGBUS)."""

import torch

from mint_contracts.errors import SourceUnavailable
from mint_engine.adapters.packed import Packed
from mint_engine.residency.remapping import bring, put_file, reserve


class LostBlock(SourceUnavailable):
    """This engine's own disk does not have all of a file any more; of other engines' storage it says nothing."""

    @property
    def reason(self) -> str:
        """To everybody else the adapter is away for now."""
        return SourceUnavailable.__name__


def read(packed: Packed) -> torch.Tensor:
    """The run, all of it in memory by now. Raises LostBlock where a part of its file can not be read."""
    if packed.file is not None:
        try:
            bring(packed.run.data_ptr(), packed.run.nbytes)
        except OSError as error:
            raise unreadable(packed, error) from error
    return packed.run


def unreadable(packed: Packed, error: OSError) -> LostBlock:
    """The error of a file of this engine's disk that can not be read."""
    reason = f"could not be read from this engine's disk ({error.strerror}); retrying"
    return LostBlock(f"revision {packed.revision}", reason)


def is_readable(descriptor: int, nbytes: int) -> bool:
    """Whether a file's first bytes can be read; they are in memory by then, for whoever reads or maps them next."""
    place = reserve(nbytes)
    try:
        put_file(place.ctypes.data, descriptor, nbytes)
    except OSError:
        return False
    return True
