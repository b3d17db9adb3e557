"""Tells how much memory a GPU has, and how much of it is left. On a CPU, settings alone bound what is taken."""

from dataclasses import dataclass

import torch

from mint_contracts.errors import CapacityExceeded
from mint_contracts.settings import EngineSettings


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of one GPU, or of the MIG instance that this process sees as one."""

    total: int
    taken: int  # by tensors of this process
    free: int  # that tensors of this process may still take; other processes on the GPU may take it first


def read_memory(device: torch.device) -> DeviceMemory:
    """Return the memory of a GPU as it is now. Raises RuntimeError if the GPU has failed."""
    free, total = torch.cuda.mem_get_info(device)  # free of all processes; of a MIG instance, its own numbers
    taken = torch.cuda.memory_allocated(device)
    kept = torch.cuda.memory_reserved(device) - taken  # freed by tensors, and kept by torch for the next ones
    return DeviceMemory(total, taken, free + kept)


def full_gpu(settings: EngineSettings, rank: int, why: str) -> CapacityExceeded:
    """Return the error for a base that filled a rank's GPU while it was loaded."""
    whose = "its" if settings.tensor_parallel_size == 1 else f"rank {rank}'s"
    return CapacityExceeded(
        f"base {settings.source.uri!r}",
        f"does not fit {whose} GPU ({why}); use larger GPUs or more of them (tensorParallelSize), "
        "or lower deviceSlots, maxRank or kvCacheMemory",
    )
