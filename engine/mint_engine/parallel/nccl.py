"""Ranks on GPUs: what torch computes on each is put together by NCCL.

They find each other by a file without a name, which they inherit.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch
from torch import distributed
from torch._C._distributed_c10d import FileStore
from torch.nn import functional

from mint_contracts.errors import EngineUnavailable
from mint_engine.parallel.meeting import PATIENCE_S
from mint_engine.parallel.shares import Share


class NcclGroup:
    """A `Group`. It joins the others when it first has something for them, as all do at once."""

    def __init__(self, descriptor: int, share: Share) -> None:
        """`descriptor` is of a file, empty at first, that stays open until all have joined."""
        self.share = share
        self._descriptor = descriptor

    def sum(self, partial: torch.Tensor) -> torch.Tensor:
        """See `Group`."""
        whole = partial.contiguous()
        self._do(lambda group: group.allreduce([whole]))
        return whole

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """See `Group`."""
        widths = [cut.size for cut in self.share.vocabularies]
        sent = functional.pad(own, (0, max(widths) - own.shape[1])).contiguous()
        found = [torch.empty_like(sent) for _ in widths] if self.share.rank == 0 else []
        options = distributed.GatherOptions()
        options.rootRank = 0
        self._do(lambda group: group.gather([found] if found else [], [sent], options))
        return torch.cat([part[:, :width] for part, width in zip(found, widths, strict=True)], 1) if found else own

    def _do(self, start: Callable[[Any], Any]) -> None:
        try:
            start(self._joined).wait()
        except RuntimeError as error:
            raise EngineUnavailable(
                "engine", f"has lost one of its ranks and is about to end; ask again ({_first_line(error)})"
            ) from error

    @cached_property
    def _joined(self) -> Any:  # torch's stubs tell nothing of what a backend can do
        share, patience = self.share, timedelta(seconds=PATIENCE_S)
        own = os.dup(self._descriptor)  # open for good: the store writes to whatever its path means when it ends
        store = FileStore(f"/proc/self/fd/{own}", share.count)
        options = distributed.ProcessGroupNCCL.Options()
        options._timeout = patience
        return distributed.ProcessGroupNCCL(store, share.rank, share.count, options)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
