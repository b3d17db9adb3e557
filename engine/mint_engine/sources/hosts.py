"""Limits silent servers to one load at a time, so that the other threads are free for servers that respond.

A failure that comes at once costs no time, and says nothing about the server's other files.
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

SILENT_S = 5.0  # a failure that took this long counts as silence
FORGET_S = 600.0  # a silence that no load has met for so long is forgotten: it would cost memory for good

_Host = tuple[str, str]


class Asking:
    """One load that reads a source."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._began = clock, clock()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Do not count the time of the block: it waits for something other than the server."""
        began = self._clock()
        try:
            yield
        finally:
            self._began += self._clock() - began

    @property
    def waited_s(self) -> float:
        """How many seconds it has waited for the server."""
        return self._clock() - self._began


class Hosts:
    """Tracks the servers of remote sources; thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._silent: dict[_Host, float] = {}  # when a load met it last
        self._asked: Counter[_Host] = Counter()

    @contextmanager
    def asking(self, source: Source) -> Iterator[Asking]:
        """Enclose the reading of a source. Raises SourceUnavailable if its server is silent and a load waits."""
        asking = Asking(self._clock)
        if is_local(source):
            yield asking
            return
        location = locate(source)
        host = location.scheme, "" if location.scheme == "hf" else location.host  # all owners' files are on one hub
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
            self._silent.pop(host, None)
            now = self._clock()
            if silent:
                self._silent[host] = now
            self._silent = {
                each: since
                for each, since in self._silent.items()
                if each in self._asked or now - since <= FORGET_S  # whoever reads now will tell
            }
