"""Watches local sources for changes while adapters loaded from them are here: polled in turn, as nothing notifies us.

Level-based: new requests soon get whatever the source's files are when they are polled. A source that cannot be read,
or is gone, changes nothing: what was loaded from it goes on serving.
"""

import itertools
from collections.abc import Callable

import structlog

from mint_contracts.records import Tier
from mint_engine.residency.books import Books
from mint_engine.residency.copies import Copy
from mint_engine.residency.source_stat import SourceStat
from mint_engine.residency.succeeding import succeed

AT_ONCE = 512  # sources polled at a time: about 10 ms of stat on a local disk
LOADS = 2  # concurrent loads of changed sources that no wave wants

log = structlog.get_logger(__name__)


class Watch:
    """Polls the sources of one engine's copies. Belongs to the event loop."""

    def __init__(self, books: Books, source_stat: SourceStat, start: Callable[[Copy, Tier], object]) -> None:
        self._books, self._source_stat, self._start = books, source_stat, start
        self._next = 0

    async def look(self) -> bool:
        """Poll the next sources and start to load those that have changed; return whether any has."""
        watched = [copy for copy in self._books.copies.values() if copy.state is not None and copy.load is None]
        begin = self._next if self._next < len(watched) else 0
        some = list(itertools.islice(watched, begin, begin + AT_ONCE))
        self._next = begin + AT_ONCE
        states = await self._source_stat.states([copy.source for copy in some])
        changed = [copy for copy, state in zip(some, states, strict=True) if self._compare(copy, state)]
        return self._renew() or bool(changed)

    def _compare(self, copy: Copy, state: str | None) -> bool:
        """Act on the present state of a copy's source; return whether it has changed since it was loaded."""
        gone = self._books.copies.get(copy.key) is not copy or copy.load is not None
        if gone or not state or state == copy.state:
            return False
        log.info("source_changed", adapter=copy.adapter, source=copy.source.uri, revision=copy.revision)
        if self._books.tier(copy).warmth >= Tier.HOST.warmth:
            succeed(self._books, copy)
        elif copy.error is not None:  # the change may have fixed the cause
            copy.recovered()
            copy.state = None
            self._books.changed(copy)
        elif self._books.wanted(copy):
            self._start(copy, Tier.DISK)
        return True

    def _renew(self) -> bool:
        """Load changed sources that no wave wants; the keeper loads the others. Return whether any load began."""
        room = LOADS - len(self._books.loading)
        began = 0
        for older in list(self._books.current.values()):
            if began >= room or older.formerly is None or older.adapter in self._books.wants:
                continue
            successor = self._books.copy_of((older.adapter, older.formerly))
            broken = successor.error is not None and successor.error.terminal
            if self._books.serves_on(older) and successor.load is None and not broken:
                self._start(successor, self._books.tier(older))
                began += 1
        return began > 0
