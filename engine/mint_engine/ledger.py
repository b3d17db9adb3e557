"""The books of one memory tier: bytes by key, least recently used first, with pins. Safe to use from any thread."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Hashable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


def evictions(entries: Sequence[tuple[K, int]], pinned: Collection[K], budget: int, need: int) -> list[K] | None:
    """What to evict so that `need` bytes fit: the fewest from the front (least recently used) of `entries`.

    `entries` are (key, bytes). None when even evicting all that is not pinned leaves too little.
    """
    free = budget - sum(nbytes for _, nbytes in entries)
    chosen: list[K] = []
    for key, nbytes in entries:
        if free >= need:
            break
        if key not in pinned:
            chosen.append(key)
            free += nbytes
    return chosen if free >= need else None


class Ledger(Generic[K]):
    """Bytes by key within a budget. A key is pinned while it is `kept` (wanted) or in use."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._entries: OrderedDict[K, int] = OrderedDict()
        self._kept: frozenset[K] = frozenset()
        self._in_use: Counter[K] = Counter()
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes of all entries."""
        with self._lock:
            return sum(self._entries.values())

    def __contains__(self, key: object) -> bool:
        with self._lock:
            return key in self._entries

    def keep(self, keys: frozenset[K]) -> None:
        """From now on these keys, and no others, are kept."""
        with self._lock:
            self._kept = keys

    def use(self, key: K) -> None:
        """Pin a key (present or not yet) until `release`; it becomes the most recently used."""
        with self._lock:
            self._in_use[key] += 1
            if key in self._entries:
                self._entries.move_to_end(key)

    def release(self, key: K) -> None:
        """End one `use`."""
        with self._lock:
            self._in_use[key] -= 1
            if self._in_use[key] <= 0:
                del self._in_use[key]

    def add(self, key: K, nbytes: int) -> list[K] | None:
        """Enter a key; returns the keys evicted for it, off the books already; None, no change, if it can not fit."""
        with self._lock:
            others = [(each, size) for each, size in self._entries.items() if each != key]
            pinned = self._kept | self._in_use.keys()
            chosen = evictions(others, pinned, self.budget, nbytes)
            if chosen is None:
                return None
            for each in chosen:
                del self._entries[each]
            self._entries[key] = nbytes
            self._entries.move_to_end(key)
            return chosen

    def remove(self, key: K) -> None:
        """Take a key off the books, if it is there."""
        with self._lock:
            self._entries.pop(key, None)

    def keys(self) -> list[K]:
        """All keys, least recently used first."""
        with self._lock:
            return list(self._entries)
