"""Comparing each rank's weights, cache, slots and policies with its device's memory; finding the fewest ranks."""

import math
from collections.abc import Iterable

import msgspec

from mint_contracts.errors import UnsupportedBase
from mint_gateway.planning.devices import Device
from mint_gateway.planning.layouts import Layout, layouts
from mint_gateway.planning.limits import MOST_RANKS, MOST_SLOTS, refusal
from mint_gateway.planning.ranks import share_out
from mint_gateway.planning.shape import DTYPE_BYTES, BaseShape, Targets

# The share of a device's memory for activations, the runtime and allocator waste, as with vLLM's default of 0.9.
RESERVE = 0.1
# A policy's float32 vectors: its own (weights, gradient and Adam's two moments), and those that saving a checkpoint
# takes of the host's memory: a copy of all four and their serialized bytes (`mint_engine.training.policy`). An engine
# with memory for only one checkpoint saves policies one after another.
_VECTORS = 4
_SAVED_VECTORS = 8
# Rows trained at once: a piece of one policy, or several pieces whose activations, kept for the backward pass, take
# at most KEPT_BYTES (`mint_engine.training.lean_pass`). An example that is longer is a piece of its own.
PIECE_ROWS, MOST_ROWS, KEPT_BYTES = 1024, 2304, 3 << 29
# Numbers that transformers' modules take for each row of a layer, by its hidden size and by its linears' outputs. The
# reserve is enough for a piece's rows (`mint_engine.training.generic_pass`).
HIDDENS, OUTPUTS = 20, 3
# A packed file's header, for the file and for each of a layer's linears; the data after it begins at a page.
_PAGE = 4096
_HEADER = 600
_HEADER_PART = 69
# While loading, the first of several ranks holds one complete layer at a time, and its tensors while they are put
# together: measured as a multiple of a layer of experts in files of one tensor each.
WHOLE_LAYERS = 2.5
_KERNELS = ("bfloat16", "float32")  # dtypes of the own kernels, which are for CPUs


class Mix(msgspec.Struct, frozen=True):
    """The load: adapters in slots, and concurrent requests of `context` tokens each.

    Also the policies that each engine trains beside them, on the same linears.
    """

    adapters: int
    rank: int
    targets: Targets
    requests: int
    context: int
    policies: int = 0
    policy_rank: int = 0

    @property
    def slot_rank(self) -> int:
        """The rank of the slots: all are equal, and a policy's rollouts need one too."""
        return max(self.rank, self.policy_rank if self.policies else 0)


class Storage(msgspec.Struct, frozen=True):
    """The bandwidths from which cold adapters are loaded, in bytes per second."""

    disk: float
    network: float


class RankMemory(msgspec.Struct, frozen=True):
    """Bytes held by one rank, or by all ranks that share one memory."""

    weights: int
    cache: int  # for the mix's requests
    adapter: int  # in its slot
    training: int  # policies' vectors, on the first rank only, and the rank's part of them in an update
    activations: int  # of the rows trained at once: kept for the backward pass, and of one layer beyond the reserve
    policies: int  # number trained: each has a slot on every rank
    room: int  # left for adapters' slots; negative if not even the rest fits

    @property
    def slots(self) -> int:
        """The number of adapters that fit beside the policies, at most as many as an engine may have."""
        return max(0, min(self.room // self.adapter, MOST_SLOTS - self.policies))

    @property
    def least(self) -> int:
        """Bytes needed with only one adapter."""
        return self.weights + self.cache + self.training + self.activations + (self.policies + 1) * self.adapter


class Least(msgspec.Struct, frozen=True):
    """The fewest ranks of an engine with which weights, cache and one adapter fit."""

    ranks: int
    nodes: int


class Plan(msgspec.Struct, frozen=True):
    """A plan's result: sizes in bytes, without replicas except in `held`; load times of one adapter in seconds."""

    parameters: int
    files: int  # of the weights, as published; 0 if unknown
    loading: int  # host memory while ranks load: see `_loading`
    weights: int
    token: int  # of the cache, with the experts that it was routed to if training replays them
    cache: int  # for the mix's requests
    adapter: int  # in its slot
    layouts: tuple[Layout, ...]  # possible in PEFT's files, if adapters are on routed experts
    adapter_file: int  # packed
    policy: int  # one trained policy, on the first rank; 0 if none is trained
    policy_parts: int  # of one policy during an update, on all ranks if there are several
    policy_saved: int  # host memory while one policy is saved
    adapter_tensors: int  # in PEFT's files
    target_modules: tuple[str, ...]  # for the BaseModel, so that slots are no larger than needed; empty: all
    memory: int  # of all the engine's devices, less the reserve
    nodes: int  # over which its ranks are spread
    held: tuple[RankMemory, ...]  # by each rank, or one for all ranks that share a memory
    slots: int  # for the mix's adapters, at most as many as there is room for on every rank
    engines: int  # needed to hold all of the mix's adapters in slots; 0: none can
    least: Least | None  # None: no number of ranks is enough
    refusal: str  # why an engine would refuse it today even if it fits, or ""
    # Transfers alone: a store's latency, checking digests and packing PEFT's files come on top.
    from_host: float
    from_disk: float
    from_network: float

    @property
    def fits(self) -> bool:
        """Whether an engine can hold weights, cache and at least one adapter."""
        return self.slots > 0

    @property
    def share(self) -> float:
        """An adapter's size as a fraction of the base's."""
        return self.adapter / self.weights

    @property
    def repeated(self) -> int:
        """Bytes of additional copies of weights that several ranks hold."""
        return sum(held.weights for held in self.held) - self.weights


def make_plan(shape: BaseShape, device: Device, ranks: int, mix: Mix, dtype: str, storage: Storage) -> Plan:
    """Plan a mix on engines of `ranks` ranks. Raises UnsupportedBase for more ranks than can share the base."""
    size = DTYPE_BYTES[dtype]
    routes = shape.route_bytes if mix.policies else 0
    token = shape.cache_elements * size + routes
    adapter = shape.adapter_elements(mix.rank, mix.targets) * size
    held = hold(shape, device, ranks, mix, dtype)
    slots = min(mix.adapters, *(each.slots for each in held))
    header = _HEADER + _HEADER_PART * shape.adapter_parts(mix.targets)
    file = adapter + -(-header // _PAGE) * _PAGE
    share = max(each.adapter for each in held) * mix.rank / mix.slot_rank
    to_device = share / device.link  # each device takes its share
    policy, saved = _policy(shape, mix, dtype)
    return Plan(
        parameters=shape.parameters,
        files=0 if shape.unread else shape.files_bytes,
        loading=_loading(shape, device, ranks, mix, dtype),
        weights=shape.resident_bytes(dtype),
        token=token,
        cache=_cache(shape, mix, size, routes),
        adapter=adapter,
        layouts=layouts(shape, mix.rank) if mix.targets == "all" else (),
        adapter_file=file,
        policy=policy,
        policy_parts=sum(_parts(shape, ranks, mix, dtype)),
        policy_saved=saved,
        adapter_tensors=shape.adapter_tensors(mix.targets),
        target_modules=shape.target_modules(mix.targets),
        memory=len(held) * usable(device),
        nodes=_nodes(device, ranks),
        held=held,
        slots=slots,
        engines=math.ceil(mix.adapters / slots) if slots else 0,
        least=least(shape, device, mix, dtype),
        refusal=refusal(
            ranks,
            _nodes(device, ranks),
            mix.slot_rank,
            mix.context,
            mix.policies,
            base=(shape.unread, shape.unserved and f"the base {shape.unserved}"),
        ),
        from_host=to_device,
        from_disk=to_device + file / storage.disk,
        from_network=to_device + file / storage.disk + file / storage.network,
    )


def hold(shape: BaseShape, device: Device, ranks: int, mix: Mix, dtype: str) -> tuple[RankMemory, ...]:
    """Return what each device's memory holds. Raises UnsupportedBase for more ranks than can share the base."""
    size = DTYPE_BYTES[dtype]
    policy, saved = _policy(shape, mix, dtype)
    routes = shape.route_bytes if mix.policies else 0
    training = mix.policies * policy + (saved if device.one_memory else 0)
    parts = _parts(shape, ranks, mix, dtype)
    each = [
        (
            _resident(share, device, mix, dtype),
            _cache(share, mix, size, 0 if at else routes),
            share.adapter_elements(mix.slot_rank, mix.targets) * size,
            mix.policies * parts[at] + (0 if at else training),
            _activations(share, device, mix, dtype) if mix.policies else 0,
        )
        for at, share in enumerate(share_out(shape, ranks))
    ]
    if device.one_memory:
        each = [tuple(sum(part) for part in zip(*each, strict=True))]
    return tuple(_held(usable(device), mix.policies, *parts) for parts in each)


def _cache(share: BaseShape, mix: Mix, size: int, routes: int) -> int:
    """Return the cache's bytes for the mix's requests, with `routes` more per token for its experts."""
    replayed = bool(mix.policies and share.route_bytes)
    places, elements = share.cache_of(mix.context, whole=replayed)
    return mix.requests * places * (elements * size + routes)


def _held(
    memory: int, policies: int, weights: int, cache: int, adapter: int, training: int, activations: int
) -> RankMemory:
    room = memory - weights - cache - training - activations - policies * adapter
    return RankMemory(weights, cache, adapter, training, activations, policies, room)


def _activations(share: BaseShape, device: Device, mix: Mix, dtype: str) -> int:
    lean = _has_kernels(device, dtype) and share.trains_lean(mix.context)
    each = share.kept_elements(lean=lean) * DTYPE_BYTES[dtype]
    if not lean:
        layer = (HIDDENS * share.hidden + OUTPUTS * share.layer_outputs) * DTYPE_BYTES[dtype]
        beyond = max(0, mix.context - PIECE_ROWS) * layer
        return max(PIECE_ROWS, mix.context) * each + beyond + share.mask_bytes(mix.context)
    rows = max(mix.context, min(MOST_ROWS, max(PIECE_ROWS, KEPT_BYTES // each)))
    return rows * (each + share.choice_bytes(mix.context))


def _has_kernels(device: Device, dtype: str) -> bool:
    return device.one_memory and dtype in _KERNELS


def _policy(shape: BaseShape, mix: Mix, dtype: str) -> tuple[int, int]:
    """Return the bytes of one policy's vectors with its rounded copy, and of host memory while it is saved."""
    elements = shape.policy_elements(mix.policy_rank, mix.targets) if mix.policies else 0
    return elements * (_VECTORS * 4 + DTYPE_BYTES[dtype]), elements * _SAVED_VECTORS * 4


def _parts(shape: BaseShape, ranks: int, mix: Mix, dtype: str) -> list[int]:
    """Return the bytes that each rank holds of one policy during an update: a rounded copy and the gradient."""
    if ranks == 1 or not mix.policies:
        return [0] * ranks
    each = DTYPE_BYTES[dtype] + 4
    return [share.policy_elements(mix.policy_rank, mix.targets) * each for share in share_out(shape, ranks)]


def least(shape: BaseShape, device: Device, mix: Mix, dtype: str) -> Least | None:
    """Return the fewest ranks that fit; with several nodes, all devices of each node are used."""
    if device.one_memory:  # more ranks take more of it, not less
        return Least(1, 1) if hold(shape, device, 1, mix, dtype)[0].slots else None
    for ranks in _candidates(device):
        try:
            held = hold(shape, device, ranks, mix, dtype)
        except UnsupportedBase:
            continue
        if all(each.slots for each in held):
            return Least(ranks, _nodes(device, ranks))
    return None


def usable(device: Device) -> int:
    """Return the bytes of one device's memory, less the reserve."""
    return int(device.memory * (1 - RESERVE))


def _loading(shape: BaseShape, device: Device, ranks: int, mix: Mix, dtype: str) -> int:
    """Return the most host memory that loading takes. A GPU gets each tensor as soon as a rank has read it.

    What ranks are reading then is at most what is outside layers, and of one rank a layer.
    """
    size = DTYPE_BYTES[dtype]
    whole = int(WHOLE_LAYERS * shape.layer_bytes(size)) if ranks > 1 else 0
    if device.one_memory:
        return whole + sum(_resident(share, device, mix, dtype) for share in share_out(shape, ranks))
    return (whole or shape.layer_bytes(size)) + ranks * (shape.vocabulary + shape.head_rows) * shape.hidden * size


def _candidates(device: Device) -> Iterable[int]:
    yield from range(1, min(device.node, MOST_RANKS) + 1)
    yield from range(2 * device.node, MOST_RANKS + 1, device.node)


def _nodes(device: Device, ranks: int) -> int:
    return 1 if device.one_memory else math.ceil(ranks / device.node)


def _resident(share: BaseShape, device: Device, mix: Mix, dtype: str) -> int:
    """Return the weights' bytes in memory. Own kernels keep a second, packed copy of the weights they multiply by."""
    lean = _has_kernels(device, dtype) and share.is_lean(mix.context)
    packed = share.packed_parameters(mix.context) if lean else 0
    return share.resident_bytes(dtype) + packed * DTYPE_BYTES[dtype]
