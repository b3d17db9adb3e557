"""How much is read from remote storage at once: small adapters many together, large ones few.

What is read lies in memory twice, as its source has it and as it is packed. Who comes first is first: small ones that
keep coming would keep a large one out for as long as they do.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

FEW = 4  # are read at once however large they are
MOST_BYTES = 256 << 20  # packed, of all that are read at once, where they are more than that


class ReadConcurrency:
    """Blocks the threads whose turn it is not."""

    def __init__(self, few: int = FEW, most_bytes: int = MOST_BYTES) -> None:
        self._few, self._most_bytes = few, most_bytes
        self._count = self._bytes = 0
        self._line = deque[object]()  # those who wait, and whoever is about to read
        self._changed = threading.Condition()

    @contextmanager
    def reading(self, nbytes: int) -> Iterator[None]:
        """Wait until so many bytes may be read beside the others, and count them until the end of the block."""
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
