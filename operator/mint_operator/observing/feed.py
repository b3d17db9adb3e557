"""What the watch has seen since the loop last looked: the newest of each object, so that nothing needs to be listed.

Filled from kopf's thread, and with the answers to the operator's own writes; emptied by the loop.
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
    """At most one entry an object, however often it changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._news: dict[tuple[str, str], News] = {}

    def saw(self, uid: str, news: News) -> None:
        """An object has changed. What the operator's writes are answered may come later than what is newer."""
        with self._lock:
            there = self._news.get((news.kind, uid))
            if there is None or not _outdates(there, news):
                self._news[news.kind, uid] = news

    def __len__(self) -> int:
        """How many objects have news."""
        return len(self._news)

    def take(self) -> list[News]:
        """Everything new, in the order in which objects were first seen."""
        with self._lock:
            news, self._news = self._news, {}
        return list(news.values())


def _outdates(there: News, news: News) -> bool:
    """Whether what is there already is newer; a uid that is gone never comes back."""
    if there.gone or news.gone:
        return there.gone
    return decode.identity(there.raw)[1] > decode.identity(news.raw)[1]
