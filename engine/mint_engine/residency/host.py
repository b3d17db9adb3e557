"""The host tier: packed adapters in memory, within a byte budget."""

import threading

from mint_contracts.source import Source
from mint_engine.adapters.packed import Packed
from mint_engine.residency.ledger import Ledger

Key = tuple[str, Source]  # adapter, and where its weights are from


class HostTier:
    """Packed adapters by key; what is evicted or dropped is freed as soon as no load uses it.

    Each is the run itself, one tensor: a mapped file on a CPU, whose pages are the system's own cache; with `pinned`
    a copy in page-locked memory, from which a GPU fetches by itself.
    """

    def __init__(self, budget: int, *, pinned: bool = False) -> None:
        self.ledger: Ledger[Key] = Ledger(budget)
        self.pinned = pinned
        self._held: dict[Key, Packed] = {}
        self._shed: list[Key] = []
        self._lock = threading.Lock()

    def get(self, key: Key) -> Packed | None:
        """The adapter, if it is here."""
        with self._lock:
            return self._held.get(key)

    def put(self, key: Key, packed: Packed) -> list[Key] | None:
        """Take an adapter in; returns the keys evicted for it, the least recently used that nobody wants here.

        None where it does not fit.
        """
        with self._lock:
            evicted = self.ledger.add(key, packed.nbytes)
            if evicted is not None:
                for each in evicted:
                    del self._held[each]
                self._held[key] = packed
            return evicted

    def set_aside(self, nbytes: int) -> list[Key] | None:
        """Keep so many bytes from adapters, in place of what was; returns the keys evicted for it, as `put` does."""
        with self._lock:
            evicted = self.ledger.set_aside(nbytes)
            for each in evicted or ():
                del self._held[each]
            return evicted

    def shed(self, nbytes: int) -> bool:
        """Let go of mapped files, so many bytes or what there is, as `put` does; False where there is none.

        The disk needs their room. Which they were, `take_shed` tells.
        """
        with self._lock:
            gone = self.ledger.give_up(nbytes, self._is_mapped)
            for each in gone:
                del self._held[each]
            self._shed += gone
            return bool(gone)

    def take_shed(self) -> list[Key]:
        """What was let go of by `shed` since the last call."""
        with self._lock:
            taken, self._shed = self._shed, []
            return taken

    def _is_mapped(self, key: Key) -> bool:
        return not self.pinned and self._held[key].file is not None

    def drop(self, key: Key) -> None:
        """Let go of an adapter, if it is here."""
        with self._lock:
            self.ledger.remove(key)
            self._held.pop(key, None)

    def imbalance(self) -> str:
        """What does not add up, or "" when all is well."""
        with self._lock:
            total, counted = sum(packed.nbytes for packed in self._held.values()), self.ledger.used
        return self.ledger.imbalance() or ("" if total == counted else f"holds {total} bytes and counts {counted}")
