"""The host tier: packed adapters in memory, within a byte budget."""

import threading

from mint_contracts.source import Source
from mint_engine.adapters.packed import Packed
from mint_engine.residency.ledger import Ledger

Key = tuple[str, Source]  # adapter and the source of its weights


class HostTier:
    """Packed adapters by key. What is evicted or dropped is freed as soon as no load uses it.

    Each is its run, one tensor: on a CPU a mapped file, whose pages are in the system's page cache; with `pinned` a
    copy in page-locked memory, which a GPU can read by DMA.
    """

    def __init__(self, budget: int, *, pinned: bool = False) -> None:
        self.ledger: Ledger[Key] = Ledger(budget)
        self.pinned = pinned
        self._held: dict[Key, Packed] = {}
        self._reserved: dict[Key, int] = {}  # bytes of those that are being copied
        self._shed: list[Key] = []
        self._lock = threading.Lock()

    def get(self, key: Key) -> Packed | None:
        """Return the adapter, or None."""
        with self._lock:
            return self._held.get(key)

    def put(self, key: Key, packed: Packed) -> list[Key] | None:
        """Add an adapter and return the keys evicted for it, the least recently used that are not pinned.

        Returns None if it does not fit.
        """
        with self._lock:
            evicted = self._enter(key, packed.nbytes)
            if evicted is not None:
                self._held[key] = packed
                self._reserved.pop(key, None)
            return evicted

    def reserve(self, key: Key, nbytes: int) -> list[Key] | None:
        """Enter the bytes of an adapter before it is copied, so that copies never exceed the budget.

        The key must be in use until `put` or `drop` follows. Evicts and returns as `put` does.
        """
        with self._lock:
            evicted = self._enter(key, nbytes)
            if evicted is not None:
                self._reserved[key] = nbytes
            return evicted

    def set_aside(self, nbytes: int) -> list[Key] | None:
        """Set `nbytes` of the budget aside, replacing the previous amount; evicts and returns as `put` does."""
        with self._lock:
            evicted = self.ledger.set_aside(nbytes)
            for each in evicted or ():
                del self._held[each]
            return evicted

    def shed(self, nbytes: int) -> bool:
        """Release mapped files until they make up `nbytes`, as the disk needs their room; False if there were none.

        `take_shed` returns their keys.
        """
        with self._lock:
            gone = self.ledger.give_up(nbytes, self._is_mapped)
            for each in gone:
                del self._held[each]
            self._shed += gone
            return bool(gone)

    def take_shed(self) -> list[Key]:
        """Return the keys that `shed` has released since the last call."""
        with self._lock:
            taken, self._shed = self._shed, []
            return taken

    def _is_mapped(self, key: Key) -> bool:
        return not self.pinned and self._held[key].file is not None

    def drop(self, key: Key) -> None:
        """Drop an adapter, if present."""
        with self._lock:
            self.ledger.remove(key)
            self._held.pop(key, None)
            self._reserved.pop(key, None)

    def imbalance(self) -> str:
        """Describe an inconsistency, or return "" if there is none."""
        with self._lock:
            total = sum(packed.nbytes for packed in self._held.values()) + sum(self._reserved.values())
            counted = self.ledger.used
        return self.ledger.imbalance() or ("" if total == counted else f"holds {total} bytes and counts {counted}")

    def _enter(self, key: Key, nbytes: int) -> list[Key] | None:
        evicted = self.ledger.add(key, nbytes)
        for each in evicted or ():
            del self._held[each]
        return evicted
