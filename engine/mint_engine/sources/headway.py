"""How far a base is on its way: counted by the threads that bring it, told by whoever wants to know."""

import threading
import time
from collections.abc import Callable

from mint_contracts.records import Bringing


class Headway:
    """One phase after another. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._phase, self._done, self._total = "", 0, 0
        self._moved, self._began = 0, 0.0

    def begin(self, phase: str, total: int) -> None:
        """A phase of `total` bytes begins; 0: nobody knows how many."""
        with self._lock:
            self._phase, self._done, self._total = phase, 0, total
            self._moved, self._began = 0, self._clock()

    def more(self, count: int) -> None:
        """So many bytes were moved."""
        with self._lock:
            self._done += count
            self._moved += count

    def kept(self, count: int) -> None:
        """So many bytes are there without having been moved now; below zero: they are to be moved again."""
        with self._lock:
            self._done += count

    def end(self) -> None:
        """It is there, or is not being brought any more."""
        self.begin("", 0)

    @property
    def now(self) -> Bringing | None:
        """How far it is; None while nothing is brought."""
        with self._lock:
            if not self._phase:
                return None
            took_s = self._clock() - self._began
            per_s = self._moved / took_s if took_s > 0 else 0.0
            done = min(self._done, self._total) if self._total else self._done
            return Bringing(self._phase, done, self._total, per_s)
