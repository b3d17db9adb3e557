"""Prometheus metrics of residency. Adapters are never labels: there can be a million of them."""

from prometheus_client import Counter, Gauge, Histogram

LOADS = Counter(
    "mint_engine_adapter_loads", "Loads of adapters that ended, by outcome: loaded, or the error", ["outcome"]
)
LOAD_SECONDS = Histogram(
    "mint_engine_adapter_load_seconds",
    "From the start of an adapter's load to its end, fetching included",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
VACATED = Counter("mint_engine_slots_vacated", "Slots that were taken from an adapter and cleared")
SLOTS_CLOSED = Counter(
    "mint_engine_slots_closed", "Times that a slot in use took no new requests, for an adapter that waited for one"
)
SLOT_WAIT_SECONDS = Histogram(
    "mint_engine_slot_wait_seconds",
    "From an adapter's asking for a slot, its weights being here, to its having one",
    buckets=(0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
SLOTS_USED = Gauge("mint_engine_slots_used", "Slots that are not free")
SLOTS_MAPPED = Gauge("mint_engine_slots_mapped_bytes", "Bytes of packed files' pages that lie in slots")
SLOTS_LOCKED = Gauge("mint_engine_slots_locked_bytes", "Those of them that are locked in memory")
SLOTS_IN_MEMORY = Gauge(
    "mint_engine_slots_in_memory_share", "Share of the packed files' pages in slots that was in memory when looked at"
)
SLOTS_LOST = Counter("mint_engine_slots_lost_bytes", "Bytes of slots that had left memory and were brought back")
HOST_BYTES = Gauge("mint_engine_host_tier_bytes", "Bytes of adapters in host memory")
DISK_BYTES = Gauge(
    "mint_engine_disk_tier_bytes",
    "Bytes of adapters in the disk cache, and of those removed that a slot or host memory still has mapped",
)
BALANCED = Gauge("mint_engine_residency_books_balanced", "1 while slots, references and bytes add up, 0 when not")
BALANCED.set(1)  # while nothing is held


def tell_load(outcome: str, seconds: float) -> None:
    """Record a load that has ended."""
    LOADS.labels(outcome).inc()
    LOAD_SECONDS.observe(seconds)


def tell_used(slots: int, host_bytes: int, disk_bytes: int) -> None:
    """Record how much of each tier is in use."""
    SLOTS_USED.set(slots)
    HOST_BYTES.set(host_bytes)
    DISK_BYTES.set(disk_bytes)
