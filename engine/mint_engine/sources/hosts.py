"""Servers that have fallen silent are asked by one load at a time: the others' threads are for who answers.

What fails at once costs nobody's time, and says nothing of the rest that its server has.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mint_contracts.errors import SourceUnavailable
from mint_contracts.source import Source, locate
from mint_engine.sources.local import is_local
from mint_engine.sources.storage import subject_of

SILENT_S = 5.0  # a failure that took as long was a wait

_Host = tuple[str, str]


class Asking:
    """One load that reads a source."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._began = clock, clock()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around what it waits for that is no answer of the server's."""
        began = self._clock()
        try:
            yield
        finally:
            self._began += self._clock() - began

    @property
    def waited_s(self) -> float:
        """How long it has asked."""
        return self._clock() - self._began


class Hosts:
    """Those of remote sources, from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._silent: set[_Host] = set()
        self._asked: Counter[_Host] = Counter()

    @contextmanager
    def asking(self, source: Source) -> Iterator[Asking]:
        """Around what reads a source. Raises SourceUnavailable where its server is silent, and somebody asks it."""
        asking = Asking(self._clock)
        if is_local(source):
            yield asking
            return
        location = locate(source)
        host = location.scheme, location.host
        self._begin(host, source)
        silent = False
        try:
            yield asking
        except SourceUnavailable:
            silent = asking.waited_s >= SILENT_S
            raise
        finally:
            self._end(host, silent=silent)

    def _begin(self, host: _Host, source: Source) -> None:
        with self._lock:
            if host in self._silent and self._asked[host]:
                message = f"waits for {'://'.join(host)}, which does not respond; retrying"
                raise SourceUnavailable(subject_of(source), message)
            self._asked[host] += 1

    def _end(self, host: _Host, *, silent: bool) -> None:
        with self._lock:
            self._asked -= Counter((host,))
            (self._silent.add if silent else self._silent.discard)(host)
