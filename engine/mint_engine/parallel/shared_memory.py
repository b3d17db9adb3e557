"""The shared memory of an engine's ranks: barriers, their partial sums, and the logits that they all write.

It also has the sums of squares for norms over all ranks' heads.

It is an anonymous file (memfd), which rank 0 creates and its children inherit: it needs no /dev/shm, counts as the
pod's memory, and is gone with the last process. Only pages that are written take memory.
"""

import mmap
from dataclasses import dataclass

import torch

from mint_contracts.errors import EngineUnavailable
from mint_engine.kernels.constants import BARRIERS_BYTES
from mint_engine.kernels.structs import PeersStruct
from mint_engine.parallel.shares import Share

PATIENCE_S = 60.0  # how long a rank waits for another within a step: both have the same work
_PAGE = 4096
_LINE = 64


@dataclass(frozen=True)
class Extent:
    """The layout and size of the memory, and the number of ranks and threads that meet in it."""

    count: int  # of ranks
    threads: int  # of each rank
    rows: int  # the most of a step
    hidden: int
    vocabulary: int
    dtype: torch.dtype

    @property
    def place(self) -> int:
        """The number of elements of one rank's partial sums, rounded up to full cache lines."""
        return -(-self.rows * self.hidden // _LINE) * _LINE

    @property
    def squares_at(self) -> int:
        """The offset of the sums of squares in bytes: two of each rank for each row."""
        return _whole_pages(_sums_at() + 2 * self.count * self.place * self.dtype.itemsize)

    @property
    def logits_at(self) -> int:
        """The offset of the logits in bytes."""
        return _whole_pages(self.squares_at + self.rows * self.count * 2 * torch.float32.itemsize)

    @property
    def nbytes(self) -> int:
        """The total size in bytes."""
        return self.logits_at + _whole_pages(self.rows * self.vocabulary * self.dtype.itemsize)


class SharedMemory:
    """One rank's view of the memory."""

    def __init__(self, descriptor: int, extent: Extent, share: Share, patience_s: float = PATIENCE_S) -> None:
        """`descriptor` is of a file of `extent.nbytes` bytes, initially zero; it may be closed afterwards."""
        self.extent, self.share, self._patience_s = extent, share, patience_s
        self._memory = mmap.mmap(descriptor, extent.nbytes, flags=mmap.MAP_SHARED)
        self._every = every = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._broken = every[:4].view(torch.int32)
        wanted = extent.rows * extent.vocabulary * extent.dtype.itemsize
        logits = every[extent.logits_at : extent.logits_at + wanted].view(extent.dtype)
        self.logits = logits.view(extent.rows, extent.vocabulary)
        self.struct = self.struct_of(extent.dtype)

    def struct_of(self, dtype: torch.dtype) -> PeersStruct:
        """Return the memory's struct for kernels of that dtype: each place has as many numbers as fit its bytes."""
        extent, share, start = self.extent, self.share, self._every.data_ptr()
        size, sums = extent.place * extent.dtype.itemsize // dtype.itemsize, start + _sums_at()
        squares = start + extent.squares_at
        return PeersStruct(share.count, share.rank, extent.threads, start, sums, size, self._patience_s, squares)

    @property
    def broken(self) -> bool:
        """Whether a rank has ended or came too late; no result after that is valid."""
        return bool(self._broken[0])

    def end(self) -> None:
        """End all waiting between ranks, for good."""
        self._broken[0] = 1

    def check(self) -> None:
        """Raise EngineUnavailable if it is broken."""
        if self.broken:
            raise EngineUnavailable("engine", "has lost one of its ranks and is about to end; retry")


def _sums_at() -> int:
    return _whole_pages(BARRIERS_BYTES)


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // _PAGE) * _PAGE
