"""The progress of fetching and loading a base: counted by the threads that do it, read from any thread."""

import threading
import time
from collections.abc import Callable

from mint_contracts.records import Bringing


class LoadProgress:
    """The progress of the current phase. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._phase, self._done, self._total = "", 0, 0
        self._moved, self._began = 0, 0.0

    def begin(self, phase: str, total: int) -> None:
        """Begin a phase of `total` bytes; 0: the number is unknown."""
        with self._lock:
            self._phase, self._done, self._total = phase, 0, total
            self._moved, self._began = 0, self._clock()

    def moved(self, count: int) -> None:
        """Count `count` bytes as moved."""
        with self._lock:
            self._done += count
            self._moved += count

    def already_there(self, count: int) -> None:
        """Count `count` bytes as present without having been moved now; negative: they will be moved again."""
        with self._lock:
            self._done += count

    def end(self) -> None:
        """End the last phase: the base is loaded, or the attempt is over."""
        self.begin("", 0)

    @property
    def now(self) -> Bringing | None:
        """The current progress; None between phases."""
        with self._lock:
            if not self._phase:
                return None
            took_s = self._clock() - self._began
            per_s = self._moved / took_s if took_s > 0 else 0.0
            done = min(self._done, self._total) if self._total else self._done
            return Bringing(self._phase, done, self._total, per_s)
