"""The books of one memory tier: bytes by key, least recently used first, with pins. Safe to use from any thread."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


def evictions(open_to: Iterable[tuple[K, int]], free: int, need: int) -> list[K] | None:
    """Return what to evict so that `need` bytes fit: the shortest prefix of `open_to`, least recently used first.

    `open_to` yields (key, bytes) of unpinned entries. `free` is the number of bytes already free, negative if the
    budget is overdrawn. Returns None if evicting everything would not be enough.
    """
    chosen: list[K] = []
    if free >= need:
        return chosen
    for key, nbytes in open_to:
        chosen.append(key)
        free += nbytes
        if free >= need:
            return chosen
    return None


class Ledger(Generic[K]):
    """Bytes by key within a budget. A key is pinned while it is kept (wanted) or in use.

    The time to add a key depends only on what it evicts, not on the number of keys.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._entries: dict[K, int] = {}
        self._open: OrderedDict[K, int] = OrderedDict()  # unpinned entries, least recently used first
        self._kept: frozenset[K] = frozenset()
        self._in_use: Counter[K] = Counter()
        self._used = self._aside = 0
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes of all entries."""
        with self._lock:
            return self._used

    @property
    def aside(self) -> int:
        """Bytes of the budget that are set aside, and so not available to entries."""
        with self._lock:
            return self._aside

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def __contains__(self, key: object) -> bool:
        with self._lock:
            return key in self._entries

    def keep(self, keys: frozenset[K]) -> None:
        """Keep exactly these keys from now on."""
        with self._lock:
            changed, self._kept = self._kept ^ keys, keys
            for key in changed:
                self._sort(key)

    def use(self, key: K) -> None:
        """Pin a key, present or not, until `release`, which makes it the most recently used."""
        with self._lock:
            self._in_use[key] += 1
            self._sort(key)

    def release(self, key: K) -> None:
        """End one `use`."""
        with self._lock:
            self._in_use[key] -= 1
            if self._in_use[key] <= 0:
                del self._in_use[key]
            self._sort(key)

    def touch(self, key: K) -> None:
        """Make an unpinned key the most recently used."""
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)

    def add(
        self, key: K, nbytes: int, *, evicting: Callable[[K], bool] = lambda _: True, beside: int = 0
    ) -> list[K] | None:
        """Add a key and return the keys evicted for it, already removed; None, changing nothing, if it does not fit.

        Only keys for which `evicting` is true are evicted. `beside` bytes of the budget are taken by something else.
        """
        with self._lock:
            free = self.budget - self._aside - self._used - beside + self._entries.get(key, 0)
            open_to = ((each, size) for each, size in self._open.items() if each != key and evicting(each))
            chosen = self._evict(open_to, free, nbytes)
            if chosen is None:
                return None
            self._remove(key)
            self._entries[key] = nbytes
            self._used += nbytes
            self._sort(key)
            return chosen

    def give_up(self, nbytes: int, which: Callable[[K], bool]) -> list[K]:
        """Remove unpinned keys for which `which` is true, least recently used first, and return them.

        Stops once they add up to `nbytes`.
        """
        with self._lock:
            chosen, left = list[K](), nbytes
            for key, size in self._open.items():
                if left <= 0:
                    break
                if which(key):
                    chosen.append(key)
                    left -= size
            for key in chosen:
                self._remove(key)
            return chosen

    def pinned_beside(self, key: K) -> int:
        """Return the bytes of all pinned entries but this key's."""
        with self._lock:
            others = self._used - sum(self._open.values())
            return others if key in self._open else others - self._entries.get(key, 0)

    def set_aside(self, nbytes: int) -> list[K] | None:
        """Set `nbytes` of the budget aside, replacing the previous amount. Evicts and returns as `add` does.

        Reducing the amount always succeeds.
        """
        with self._lock:
            free = self.budget - self._used
            chosen = [] if nbytes <= self._aside else self._evict(self._open.items(), free, nbytes)
            if chosen is not None:
                self._aside = nbytes
            return chosen

    def remove(self, key: K) -> None:
        """Remove a key, if present."""
        with self._lock:
            self._remove(key)

    def keys(self) -> list[K]:
        """Return all keys."""
        with self._lock:
            return list(self._entries)

    def imbalance(self) -> str:
        """Describe an inconsistency, or return "" if there is none."""
        with self._lock:
            total = sum(self._entries.values())
            if total != self._used or total + self._aside > self.budget:
                aside = f" and {self._aside} set aside" if self._aside else ""
                return f"{total} bytes entered, {self._used} counted{aside}, {self.budget} allowed"
            pinned = {key for key in self._entries if key in self._kept or key in self._in_use}
            if self._open.keys() != self._entries.keys() - pinned or any(n <= 0 for n in self._in_use.values()):
                return "pins and entries do not agree"
            return ""

    def _evict(self, open_to: Iterable[tuple[K, int]], free: int, need: int) -> list[K] | None:
        """Remove and return what `evictions` chooses."""
        chosen = evictions(open_to, free, need)
        for each in chosen or ():
            self._remove(each)
        return chosen

    def _remove(self, key: K) -> None:
        self._used -= self._entries.pop(key, 0)
        self._open.pop(key, None)

    def _sort(self, key: K) -> None:
        """Move a key to the end of the unpinned entries, or out of them if it is pinned."""
        if key in self._entries and key not in self._kept and key not in self._in_use:
            self._open[key] = self._entries[key]
            self._open.move_to_end(key)
        else:
            self._open.pop(key, None)
