"""Ranks that share no memory put together what torch computes by NCCL on GPUs, by gloo on CPUs of several nodes."""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import distributed
from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore
from torch.nn import functional

from mint_contracts.errors import EngineUnavailable
from mint_engine.parallel.messages import Wire
from mint_engine.parallel.shared_memory import PATIENCE_S
from mint_engine.parallel.shares import Share

_PATIENCE = timedelta(seconds=PATIENCE_S)
Joined = Any  # torch's stubs tell nothing of what a backend can do


class Backend(Protocol):
    """How ranks join each other, and add up."""

    def join(self, share: Share) -> Joined:
        """Waits for all others, within the patience."""
        ...

    def add(self, joined: Joined, whole: torch.Tensor) -> torch.Tensor:
        """See `Group.sum`; `whole` is contiguous."""
        ...


class DistributedGroup:
    """A `Group`. It joins the others when it first has something for them, as all do at once."""

    def __init__(self, share: Share, backend: Backend) -> None:
        self.share = share
        self._backend = backend

    def sum(self, partial: torch.Tensor) -> torch.Tensor:
        """See `Group`."""
        whole = partial.contiguous()
        found: torch.Tensor = self._do(lambda joined: self._backend.add(joined, whole))
        return found

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """See `Group`."""
        widths = [cut.size for cut in self.share.vocabularies]
        sent = functional.pad(own, (0, max(widths) - own.shape[1])).contiguous()
        found = [torch.empty_like(sent) for _ in widths] if self.share.rank == 0 else []
        options = distributed.GatherOptions()
        options.rootRank = 0
        self._do(lambda joined: joined.gather([found] if found else [], [sent], options).wait())
        return torch.cat([part[:, :width] for part, width in zip(found, widths, strict=True)], 1) if found else own

    def _do(self, act: Callable[[Joined], Any]) -> Any:
        try:
            return act(self._joined)
        except RuntimeError as error:
            raise EngineUnavailable(
                "engine", f"has lost one of its ranks and is about to end; retry ({_first_line(error)})"
            ) from error

    @cached_property
    def _joined(self) -> Joined:
        return self._backend.join(self.share)


class Nccl:
    """GPUs, that find each other by what `find` gives: of how many ranks."""

    def __init__(self, find: Callable[[int], Store]) -> None:
        self._find = find

    def join(self, share: Share) -> Joined:
        """See `Backend`."""
        options = distributed.ProcessGroupNCCL.Options()
        options._timeout = _PATIENCE
        return distributed.ProcessGroupNCCL(self._find(share.count), share.rank, share.count, options)

    def add(self, joined: Joined, whole: torch.Tensor) -> torch.Tensor:
        """See `Backend`."""
        joined.allreduce([whole]).wait()
        return whole


class Gloo:
    """CPUs of several nodes, over TCP."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def join(self, share: Share) -> Joined:
        """See `Backend`."""
        gloo: Any = distributed.ProcessGroupGloo
        options = gloo._Options()
        options._timeout = _PATIENCE
        options._devices = [gloo.create_device(hostname=self._wire.address)]
        return gloo(store_on(self._wire), share.rank, share.count, options)

    def add(self, joined: Joined, whole: torch.Tensor) -> torch.Tensor:
        """In float32, in the order of ranks and rounded once, as `SharedGroup` does: each rank adds a part up.

        gloo's own sum adds in the type of the numbers, and in an order that depends on how many there are.
        """
        ranks = joined.size()
        each = -(-whole.numel() // ranks)
        sent = functional.pad(whole.view(-1), (0, ranks * each - whole.numel())).view(torch.uint8)
        found = torch.empty_like(sent)
        joined.alltoall_base(found, sent, [], []).wait()
        first, *others = found.view(whole.dtype).view(ranks, each).to(torch.float32)
        for other in others:
            first += other
        every = torch.empty_like(sent)
        joined._allgather_base(every, first.to(whole.dtype).view(torch.uint8)).wait()
        return every.view(whole.dtype)[: whole.numel()].view(whole.shape)


def store_in(descriptor: int) -> Callable[[int], Store]:
    """Where ranks of one node find each other: a file, empty at first, that stays open until all have joined."""

    def find(count: int) -> Store:
        own = os.dup(descriptor)  # open for good: the store writes to whatever its path means when it ends
        return FileStore(f"/proc/self/fd/{own}", count)

    return find


def store_on(wire: Wire) -> Store:
    """Where ranks of several nodes find each other: the leader, under a name that no stranger knows."""
    store = TCPStore(wire.host, wire.port, is_master=False, timeout=_PATIENCE)
    return PrefixStore(wire.name, store)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
