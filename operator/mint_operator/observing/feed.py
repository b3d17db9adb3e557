"""What the watch has seen since the loop last looked: the newest of each object, so that nothing needs to be listed.

Filled from kopf's thread, and with the answers to the operator's own writes; emptied by the loop.
"""

import threading

import msgspec


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
        """An object has changed."""
        with self._lock:
            self._news[news.kind, uid] = news

    def __len__(self) -> int:
        """How many objects have news."""
        return len(self._news)

    def take(self) -> list[News]:
        """Everything new, in the order in which objects were first seen."""
        with self._lock:
            news, self._news = self._news, {}
        return list(news.values())
