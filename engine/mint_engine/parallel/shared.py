"""The group of ranks on one node's CPU: they combine torch's results in shared memory."""

import torch

from mint_contracts.errors import UnsupportedBase
from mint_engine.kernels.library import Kernels, find_kernels
from mint_engine.parallel.shared_memory import SharedMemory
from mint_engine.parallel.shares import Share


class SharedGroup:
    """A `Group` over shared memory that nothing else uses."""

    def __init__(self, memory: SharedMemory) -> None:
        """Raises UnsupportedBase if no kernels were compiled for this machine."""
        self._memory, self._buffer = memory, 0
        self._ways = {dtype: (_kernels(dtype), memory.struct_of(dtype)) for dtype in (torch.bfloat16, torch.float32)}

    @property
    def share(self) -> Share:
        """See `Group`."""
        return self._memory.share

    def sum(self, partial: torch.Tensor) -> torch.Tensor:
        """See `Group`. Numbers are added in float32, in the order of ranks, and rounded once."""
        if partial.dtype not in self._ways:
            return self.sum(partial.to(torch.float32)).to(partial.dtype)
        whole = partial.contiguous()
        kernels, peers = self._ways[partial.dtype]
        for piece in torch.split(whole.view(-1), peers.size):
            kernels.all_reduce(piece, self._buffer, peers)
            self._memory.check()
            self._buffer = 1 - self._buffer
        return whole

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """See `Group`; rank 0's result is in the dtype of that memory."""
        logits = self._memory.logits[: own.shape[0]]
        logits[:, slice(*self.share.vocabulary)] = own
        kernels, peers = self._ways[torch.float32]
        kernels.barrier(peers)
        self._memory.check()
        return logits if self.share.rank == 0 else own


def _kernels(dtype: torch.dtype) -> Kernels:
    found = find_kernels(dtype, torch.device("cpu"))
    if found is None:
        raise UnsupportedBase(
            "tensorParallelSize",
            "is more than 1, and ranks on a CPU need compiled kernels, which this machine does not have; set it to 1",
        )
    return found
