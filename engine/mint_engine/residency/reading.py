"""Reading what packed adapters are mapped from: a lost block of a mapping ends the process that reads it (SIGBUS)."""

import torch

from mint_contracts.errors import SourceUnavailable
from mint_engine.adapters.packed import Packed
from mint_engine.residency.remapping import bring


def read(packed: Packed) -> torch.Tensor:
    """The run, all of it in memory by now. Raises SourceUnavailable where a block of its file can not be read."""
    if packed.file is not None:
        try:
            bring(packed.run.data_ptr(), packed.run.nbytes)
        except OSError as error:
            raise unreadable(packed, error) from error
    return packed.run


def unreadable(packed: Packed, error: OSError) -> SourceUnavailable:
    """What is told of a file of this engine's disk that can not be read."""
    told = f"could not be read from this engine's disk ({error.strerror}); retrying"
    return SourceUnavailable(f"revision {packed.revision}", told)
