"""One kind of object as last seen: listed whole now and then, and kept up to date by what the watch sees."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import msgspec

from mint_operator.observing import decode
from mint_operator.observing.feed import News

T = TypeVar("T")


class Store(Generic[T]):
    """Objects by uid. `decode_as` makes one from its JSON and the one that it replaces, to share what did not change.

    Resource versions tell which of two sightings is newer; the API server compares them as numbers (KEP 5504).
    """

    def __init__(self, decode_as: Callable[[bytes | msgspec.Raw, T | None], T]) -> None:
        self._decode = decode_as
        self._versions: dict[str, int] = {}
        self.objects: dict[str, T] = {}

    def replace(self, raws: Iterable[bytes | msgspec.Raw]) -> None:
        """A whole listing: what it lacks is gone."""
        objects, versions = {}, {}
        for raw in raws:
            uid, version = decode.identity(raw)
            known = self._versions.get(uid, -1)
            if known >= version:
                objects[uid], versions[uid] = self.objects[uid], known
            else:
                objects[uid], versions[uid] = self._decode(raw, self.objects.get(uid)), version
        self.objects, self._versions = objects, versions

    def take(self, news: News) -> bool:
        """One sighting; returns whether anything is new."""
        uid, version = decode.identity(news.raw)
        if news.gone:
            self._versions.pop(uid, None)
            return self.objects.pop(uid, None) is not None
        if self._versions.get(uid, -1) >= version:
            return False
        self.objects[uid] = self._decode(news.raw, self.objects.get(uid))
        self._versions[uid] = version
        return not news.own
