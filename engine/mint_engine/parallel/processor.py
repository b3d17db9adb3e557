"""What a rank computes on, in words: ranks on different processors may round the same inputs differently."""

import torch

from mint_contracts.settings import EngineSettings
from mint_engine.kernels.library import instruction_set
from mint_engine.model.device import choose_device


def processor_of(settings: EngineSettings, rank: int) -> str:
    """Return a rank's model of GPU, or its CPU's instruction set. Raises UnsupportedBase if it has no such device."""
    if settings.device == "cpu":
        return f"a CPU with {instruction_set() or 'other'} instructions"
    return torch.cuda.get_device_name(choose_device(settings.device, rank % settings.ranks_per_node))
