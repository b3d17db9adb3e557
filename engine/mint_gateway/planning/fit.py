"""Does it fit? Weights, cache, slots and policies of each rank against its device's memory; how few ranks do."""

import math
from collections.abc import Iterable

import msgspec

from mint_contracts.errors import UnsupportedBase
from mint_gateway.planning.devices import Device
from mint_gateway.planning.layouts import Layout, layouts
from mint_gateway.planning.ranks import share_out
from mint_gateway.planning.served import MOST_RANKS, MOST_SLOTS, refusal
from mint_gateway.planning.shape import DTYPE_BYTES, BaseShape, Targets

# Of a device's memory, for activations, the runtime and what allocators waste; as vLLM's default of 0.9 leaves free.
RESERVE = 0.1
# Of a policy: float32 vectors that it is (weights, gradient and Adam's two moments), and that a checkpoint takes of
# the host's memory, a copy of all four and the bytes that are made of it (`mint_engine.training.policy`). An engine
# waits with those of others where it has memory for one alone.
_VECTORS = 4
_SAVED_VECTORS = 8
# Rows that are trained at once: a piece of a policy, or several where what is kept of them for the way back is no
# more than so much (`mint_engine.training.lean_pass`).
PIECE_ROWS, MOST_ROWS, KEPT_BYTES = 1024, 2304, 3 << 29
# Before a packed file's run, which begins at a page: what is told of all of it, and of each of a layer's linears.
_PAGE = 4096
_HEADER = 600
_HEADER_PART = 69
# Of a base's layers the first of several ranks has one whole at a time, and its tensors while these are put together:
# so much was measured of a layer of experts in files of one tensor each.
WHOLE_LAYERS = 2.5
_KERNELS = ("bfloat16", "float32")  # number types that there are own kernels of, for processors


class Mix(msgspec.Struct, frozen=True):
    """What is wanted at once: adapters in slots, and requests that run together, of so many tokens each.

    And policies that each engine trains beside them, on the same linears.
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
        """That slots are made for: all are alike, and a policy's rollouts need one too."""
        return max(self.rank, self.policy_rank if self.policies else 0)


class Storage(msgspec.Struct, frozen=True):
    """Where cold adapters come from, in bytes a second."""

    disk: float
    network: float


class Held(msgspec.Struct, frozen=True):
    """Bytes of one rank, or of all that compute in one memory."""

    weights: int
    cache: int  # for the mix's requests
    adapter: int  # in its slot
    training: int  # numbers of policies, which the first rank alone has, and the rank's part of them in an update
    activations: int  # kept for the way back, of rows that are trained at once
    policies: int  # that are trained: each has a slot on every rank
    room: int  # for adapters' slots; negative where not even all else fits

    @property
    def slots(self) -> int:
        """Adapters that there is room for beside policies, no more than an engine may have."""
        return max(0, min(self.room // self.adapter, MOST_SLOTS - self.policies))

    @property
    def least(self) -> int:
        """Bytes with but one adapter."""
        return self.weights + self.cache + self.training + self.activations + (self.policies + 1) * self.adapter


class Least(msgspec.Struct, frozen=True):
    """The fewest ranks of an engine with which weights, cache and one adapter fit."""

    ranks: int
    nodes: int


class Plan(msgspec.Struct, frozen=True):
    """What a mix comes to: sizes in bytes, each thing counted once but in `held`; seconds of one adapter."""

    parameters: int
    files: int  # of the weights, as published; 0 where it is not known
    loading: int  # of the host's memory while ranks load: their shares, and layers that the first one has whole
    weights: int
    token: int  # of the cache, with the experts that it went to where that is replayed in training
    cache: int  # for the mix's requests
    adapter: int  # in its slot
    layouts: tuple[Layout, ...]  # that PEFT's files may have, where adapters are on routed experts
    adapter_file: int  # packed
    policy: int  # one that is trained, on the first rank; 0 where none is
    policy_parts: int  # of one during an update, on all ranks where there are several
    policy_saved: int  # of the host's memory while one is saved
    adapter_tensors: int  # in PEFT's files
    target_modules: tuple[str, ...]  # that a BaseModel says, so that slots are no larger; none: all there are
    memory: int  # of all the engine's devices, less the reserve
    nodes: int  # that its ranks are on
    held: tuple[Held, ...]  # by each rank; by all ranks where they compute in one memory
    slots: int  # that hold the mix's adapters, or as many as there is room for on every rank
    engines: int  # that hold all of the mix's adapters in slots; 0: none can
    least: Least | None  # None: no number of ranks is enough
    refusal: str  # why an engine would refuse it today, whatever fits; "" where none would
    # Of bytes alone: asking a store, checking digests and what PEFT's files take to be packed come on top.
    from_host: float
    from_disk: float
    from_network: float

    @property
    def fits(self) -> bool:
        """Whether an engine holds weights, cache and at least one adapter."""
        return self.slots > 0

    @property
    def share(self) -> float:
        """An adapter's size over the base's."""
        return self.adapter / self.weights

    @property
    def repeated(self) -> int:
        """Bytes of weights that more than one rank holds, each time but the first."""
        return sum(held.weights for held in self.held) - self.weights


def make_plan(shape: BaseShape, device: Device, ranks: int, mix: Mix, dtype: str, storage: Storage) -> Plan:
    """Count a mix on engines of so many ranks. Raises UnsupportedBase for more ranks than can share the base."""
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


def hold(shape: BaseShape, device: Device, ranks: int, mix: Mix, dtype: str) -> tuple[Held, ...]:
    """What is in each device's memory. Raises UnsupportedBase for more ranks than can share the base."""
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
    """Bytes of the mix's requests, with so many a place for the experts that tokens went to."""
    replayed = bool(mix.policies and share.route_bytes)
    places, elements = share.cache_of(mix.context, whole=replayed)
    return mix.requests * places * (elements * size + routes)


def _held(
    memory: int, policies: int, weights: int, cache: int, adapter: int, training: int, activations: int
) -> Held:
    room = memory - weights - cache - training - activations - policies * adapter
    return Held(weights, cache, adapter, training, activations, policies, room)


def _activations(share: BaseShape, device: Device, mix: Mix, dtype: str) -> int:
    lean = _has_kernels(device, dtype) and share.trains_lean(mix.context)
    each = share.kept_elements(lean=lean) * DTYPE_BYTES[dtype]
    if not lean:
        return PIECE_ROWS * each
    return min(MOST_ROWS, max(PIECE_ROWS, KEPT_BYTES // each)) * (each + share.choice_bytes(mix.context))


def _has_kernels(device: Device, dtype: str) -> bool:
    return device.one_memory and dtype in _KERNELS


def _policy(shape: BaseShape, mix: Mix, dtype: str) -> tuple[int, int]:
    """Bytes of one policy's numbers with what they round to, and of the host's memory while it is saved."""
    elements = shape.policy_elements(mix.policy_rank, mix.targets) if mix.policies else 0
    return elements * (_VECTORS * 4 + DTYPE_BYTES[dtype]), elements * _SAVED_VECTORS * 4


def _parts(shape: BaseShape, ranks: int, mix: Mix, dtype: str) -> list[int]:
    """Bytes that each rank holds of one policy during an update: rounded, and with its gradient."""
    if ranks == 1 or not mix.policies:
        return [0] * ranks
    each = DTYPE_BYTES[dtype] + 4
    return [share.policy_elements(mix.policy_rank, mix.targets) * each for share in share_out(shape, ranks)]


def least(shape: BaseShape, device: Device, mix: Mix, dtype: str) -> Least | None:
    """The fewest ranks that fit; on several nodes, so many that each node's devices are all used."""
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
    """Bytes of one device's memory, less the reserve."""
    return int(device.memory * (1 - RESERVE))


def _loading(shape: BaseShape, device: Device, ranks: int, mix: Mix, dtype: str) -> int:
    shares = sum(_resident(share, device, mix, dtype) for share in share_out(shape, ranks))
    whole = WHOLE_LAYERS * shape.layer_bytes(DTYPE_BYTES[dtype]) if ranks > 1 else 0
    return shares + int(whole)


def _candidates(device: Device) -> Iterable[int]:
    yield from range(1, min(device.node, MOST_RANKS) + 1)
    yield from range(2 * device.node, MOST_RANKS + 1, device.node)


def _nodes(device: Device, ranks: int) -> int:
    return 1 if device.one_memory else math.ceil(ranks / device.node)


def _resident(share: BaseShape, device: Device, mix: Mix, dtype: str) -> int:
    """Weights in memory: own kernels lay out what they multiply by once more, beside the modules that it came in."""
    lean = _has_kernels(device, dtype) and share.is_lean(mix.context)
    packed = share.packed_parameters(mix.context) if lean else 0
    return share.resident_bytes(dtype) + packed * DTYPE_BYTES[dtype]
