"""What every rank builds from a base, in the same way: its share of the layers, the slots and the cache."""

from dataclasses import dataclass, replace

import torch

from mint_contracts.settings import EngineSettings
from mint_engine.model.base import Base
from mint_engine.model.cache import Cache
from mint_engine.model.cache_shape import make_cache, pages_in, shape_for
from mint_engine.model.experts import route_shape
from mint_engine.model.quantised_experts import move
from mint_engine.parallel.distributed import DistributedGroup, Gloo, Nccl, store_in, store_on
from mint_engine.parallel.files import Files
from mint_engine.parallel.messages import Wire
from mint_engine.parallel.part import Part
from mint_engine.parallel.peers import Peers
from mint_engine.parallel.shard import shard_head
from mint_engine.parallel.shared import SharedGroup
from mint_engine.parallel.shared_memory import Extent, SharedMemory
from mint_engine.parallel.shares import Share, cuts_of
from mint_engine.residency.slots import Others, Slots


@dataclass(frozen=True)
class Member:
    """One rank's part of an engine."""

    base: Base  # with this rank's share of the layers
    share: Share
    slots: Slots
    cache: Cache


def lay_member(
    settings: EngineSettings, base: Base, part: Part, device: torch.device, others: Others | None = None
) -> Member:
    """Cut an uncut base, and lay out the rank's share, slots and cache on its device. Raises a MintError.

    The uncut base may be in host memory only, and too large for any one device.
    """
    share, modules = part.cut(base.model), part.modules
    shard_head(base, share)
    move(base.model, device)
    base = replace(base, device=device, context_length=settings.context_length)
    slots = Slots(
        modules, settings.device_slots, settings.max_rank, base.dtype, base.device, cuts_of(modules, share), others
    )
    cache = lay_cache(settings, base, share)
    cache.bring_in()
    return Member(base, share, slots, cache)


def lay_cache(settings: EngineSettings, base: Base, share: Share | None = None) -> Cache:
    """Make a cache as large as the settings allow; with a `share`, of a rank, all of which have as many pages.

    Raises UnsupportedBase if no cache supports the base's attention, CapacityExceeded if one request would not fit.
    """
    routes = route_shape(base.model)
    shape = shape_for(settings, base.config, routes)
    pages, keeps = pages_in(settings, shape, routes, base.dtype), settings.training_store is not None
    if share is not None:
        shape, keeps = shape.shared(share.kv_heads.size), keeps and share.rank == 0  # only rank 0 reads routes
    return make_cache(shape, routes if keeps else None, pages, base.dtype, base.device)


def extent_of(member: Member, rows: int, threads: int) -> Extent:
    """Return the extent of the shared memory that a base's ranks need for steps of at most `rows` rows."""
    config = member.base.config
    return Extent(
        member.share.count, threads, rows, int(config.hidden_size), int(config.vocab_size), member.base.dtype
    )


def join(member: Member, files: Files, rows: int, threads: int, wire: Wire | None) -> Peers:
    """Return the rank's peers: in shared memory, whose files must be as large as `extent_of` says, or over a `wire`.

    Raises UnsupportedBase if this machine has no way for ranks to meet.
    """
    share, on_cpu = member.share, member.base.device.type == "cpu"
    if wire is not None:
        return Peers(DistributedGroup(share, Gloo(wire) if on_cpu else Nccl(lambda _: store_on(wire))))
    extent = extent_of(member, rows, threads)
    kernels = SharedMemory(files.memory, extent, share)
    if not on_cpu:
        return Peers(DistributedGroup(share, Nccl(store_in(files.group))), kernels, (kernels,))
    torchs = SharedMemory(files.group, extent, share)
    return Peers(SharedGroup(torchs), kernels, (kernels, torchs))
