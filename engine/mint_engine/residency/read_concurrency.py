"""Limits how much is read from remote storage at once: many small adapters, or a few large ones.

An adapter that is being read is in memory twice, as stored at its source and packed. First come, first served:
otherwise a steady stream of small adapters would keep a large one waiting.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

FEW = 4  # adapters that may be read at once however large they are
MOST_BYTES = 256 << 20  # packed bytes read at once, when more than FEW adapters are


class ReadConcurrency:
    """Blocks threads until it is their turn to read."""

    def __init__(self, few: int = FEW, most_bytes: int = MOST_BYTES) -> None:
        self._few, self._most_bytes = few, most_bytes
        self._count = self._bytes = 0
        self._line = deque[object]()  # the waiting threads, the next to read first
        self._changed = threading.Condition()

    @contextmanager
    def reading(self, nbytes: int) -> Iterator[None]:
        """Wait until `nbytes` more may be read, and count them until the context ends."""
        own = object()
        with self._changed:
            self._line.append(own)
            self._changed.wait_for(lambda: self._line[0] is own and self._has_room(nbytes))
            self._line.popleft()
            self._count += 1
            self._bytes += nbytes
            self._changed.notify_all()  # there may be room for the next one, too
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._bytes -= nbytes
                self._changed.notify_all()

    def _has_room(self, nbytes: int) -> bool:
        return self._count < self._few or self._bytes + nbytes <= self._most_bytes
