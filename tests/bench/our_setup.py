"""The settings of the engine that our side starts."""

import msgspec

from mint_contracts.settings import EngineSettings
from mint_contracts.source import Source


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
    threads: int = 0  # per rank; 0: as many as there are cores for it
    quantised_experts: bool = False

    @property
    def settings(self) -> EngineSettings:
        """The engine's settings."""
        return EngineSettings(
            base_model="bench/base",
            source=Source(f"file://{self.base}"),
            device=self.device,
            dtype="bfloat16",
            context_length=self.context,
            kv_cache_bytes=self.kv_bytes,
            max_rank=self.max_rank,
            device_slots=self.slots,
            host_bytes=self.host_bytes,
            disk_bytes=self.disk_bytes,
            store=Source(self.store) if self.store else None,
            tensor_parallel_size=self.ranks,
            quantised_experts=self.quantised_experts,
        )
