"""Does it fit? Weights, cache and slots against a device's memory; engines for a wave mix; what cold loads take."""

import math

import msgspec

from mint_gateway.planning.devices import Device
from mint_gateway.planning.shape import BaseShape, Targets

# Of a device's memory, for activations, the runtime and what allocators waste; as vLLM's default of 0.9 leaves free.
RESERVE = 0.1
PACKED_HEADER = 4096  # at least; a packed file's run begins at a page
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


class Mix(msgspec.Struct, frozen=True):
    """What is wanted at once: adapters in slots, and requests that run together, of so many tokens each."""

    adapters: int
    rank: int
    targets: Targets
    requests: int
    context: int


class Storage(msgspec.Struct, frozen=True):
    """Where cold adapters come from, in bytes a second."""

    disk: float
    network: float


class Plan(msgspec.Struct, frozen=True):
    """What a mix comes to. Sizes in bytes, of one engine; times in seconds, of one adapter."""

    parameters: int
    weights: int
    token: int  # of the cache
    cache: int  # for the mix's requests
    adapter: int  # in its slot
    adapter_file: int  # packed
    adapter_tensors: int  # in PEFT's files
    memory: int  # of all the engine's devices, less the reserve
    room: int  # for slots; negative where not even weights and cache fit
    slots: int  # that hold the mix's adapters, or as many as there is room for
    engines: int  # that hold all of the mix's adapters in slots; 0: none can
    devices_needed: int  # an engine's devices from which weights, cache and one slot fit
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


def make_plan(shape: BaseShape, device: Device, devices: int, mix: Mix, dtype: str, storage: Storage) -> Plan:
    """Count a mix on engines of so many devices each."""
    size = DTYPE_BYTES[dtype]
    weights, token = shape.parameters * size, shape.cache_elements * size
    cache = mix.requests * mix.context * token
    adapter = shape.adapter_elements(mix.rank, mix.targets) * size
    usable = int(device.memory * (1 - RESERVE))
    room = devices * usable - weights - cache
    slots = max(0, min(mix.adapters, room // adapter))
    file = adapter + PACKED_HEADER
    to_device = adapter / (device.link * devices)  # each device takes its shard
    return Plan(
        parameters=shape.parameters,
        weights=weights,
        token=token,
        cache=cache,
        adapter=adapter,
        adapter_file=file,
        adapter_tensors=shape.adapter_tensors(mix.targets),
        memory=devices * usable,
        room=room,
        slots=slots,
        engines=math.ceil(mix.adapters / slots) if slots else 0,
        devices_needed=math.ceil((weights + cache + adapter) / usable),
        from_host=to_device,
        from_disk=to_device + file / storage.disk,
        from_network=to_device + file / storage.disk + file / storage.network,
    )
