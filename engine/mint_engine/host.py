"""The host tier: adapters' weights in memory, within a byte budget."""

import threading

from mint_contracts.source import Source
from mint_engine.adapter import AdapterWeights
from mint_engine.ledger import Ledger

Key = tuple[str, Source]  # adapter, and where its weights are from


class HostTier:
    """Weights by key; what is evicted or dropped is freed as soon as no load uses it."""

    def __init__(self, budget: int) -> None:
        self.ledger: Ledger[Key] = Ledger(budget)
        self._weights: dict[Key, AdapterWeights] = {}
        self._lock = threading.Lock()

    def get(self, key: Key) -> AdapterWeights | None:
        """The weights, if they are here."""
        with self._lock:
            return self._weights.get(key)

    def put(self, key: Key, weights: AdapterWeights) -> bool:
        """Take weights in, evicting the least recently used that nobody wants here; False if they do not fit."""
        with self._lock:
            evicted = self.ledger.add(key, weights.nbytes)
            if evicted is None:
                return False
            for each in evicted:
                del self._weights[each]
            self._weights[key] = weights
            return True

    def drop(self, key: Key) -> None:
        """Let go of the weights, if they are here."""
        with self._lock:
            self.ledger.remove(key)
            self._weights.pop(key, None)
