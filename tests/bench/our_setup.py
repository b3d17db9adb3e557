"""What engine our side brings up."""

import msgspec


class Setup(msgspec.Struct, frozen=True):
    """One engine's base, device, store of adapters, and limits; sizes are bytes."""

    base: str
    cache: str
    device: str = "cpu"
    store: str = ""
    max_rank: int = 32
    slots: int = 64
    context: int = 256
    kv_bytes: int = 1 << 30
    host_bytes: int = 4 << 30
    disk_bytes: int = 16 << 30
    ranks: int = 1
    threads: int = 0  # of each rank; 0: as many as there are cores for it
