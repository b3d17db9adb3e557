"""What the watch has seen since the last pass: each object's newest state, so that nothing needs to be listed.

Kopf's thread and the answers to the operator's own writes fill it; the loop empties it.
"""

import threading

import msgspec

from mint_operator.observing import decode


class News(msgspec.Struct, frozen=True):
    """One object as it is now, in JSON; `gone` if it was deleted, `own` if the operator has just written it."""

    kind: str
    raw: bytes
    gone: bool = False
    own: bool = False


class Feed:
    """The latest news, at most one entry per object however often it changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._news: dict[tuple[str, str], News] = {}

    def put(self, uid: str, news: News) -> None:
        """Store an object's new state, unless a newer one is there: answers to the operator's writes may be late."""
        with self._lock:
            there = self._news.get((news.kind, uid))
            if there is None or not _outdates(there, news):
                self._news[news.kind, uid] = news

    def __len__(self) -> int:
        """Return how many objects have news."""
        return len(self._news)

    def take(self) -> list[News]:
        """Remove and return all news, in the order in which objects were first seen."""
        with self._lock:
            news, self._news = self._news, {}
        return list(news.values())


def _outdates(there: News, news: News) -> bool:
    """Whether the stored entry is newer than `news`; a deleted uid never comes back."""
    if there.gone or news.gone:
        return there.gone
    return decode.identity(there.raw)[1] > decode.identity(news.raw)[1]
