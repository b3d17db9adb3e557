"""Groups of ranks without shared memory: they combine torch's results by NCCL on GPUs, by gloo on CPUs of nodes."""

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
Joined = Any  # torch's stubs do not declare a backend's methods


class Backend(Protocol):
    """How ranks connect to each other and add tensors up."""

    def join(self, share: Share) -> Joined:
        """Connect to all other ranks, waiting for them for at most PATIENCE_S."""
        ...

    def add(self, joined: Joined, whole: torch.Tensor) -> torch.Tensor:
        """See `Group.sum`; `whole` is contiguous."""
        ...


class DistributedGroup:
    """A `Group` that connects to the other ranks at its first operation, which all ranks begin at the same time."""

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
    """The backend for GPUs. Ranks find each other by the store that `find(count)` returns."""

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
    """The backend for CPUs of several nodes, over TCP."""

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
        """Add in float32, in the order of ranks, rounded once, as `SharedGroup` does; each rank adds up one part.

        gloo's own sum adds in the tensors' dtype, and in an order that depends on their size.
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
    """Return a `find` for ranks of one node: a store in a file, empty at first, that stays open until all joined."""

    def find(count: int) -> Store:
        own = os.dup(descriptor)  # never closed: when the store ends, it writes to whatever file has its path then
        return FileStore(f"/proc/self/fd/{own}", count)

    return find


def store_on(wire: Wire) -> Store:
    """Return the store where ranks of several nodes find each other: at the leader, under a secret name."""
    store = TCPStore(wire.host, wire.port, is_master=False, timeout=_PATIENCE)
    return PrefixStore(wire.name, store)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
