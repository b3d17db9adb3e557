"""One kind of object as last seen: fully listed now and then, and kept up to date by what the watch sees."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import msgspec

from mint_operator.observing import decode
from mint_operator.observing.feed import News

T = TypeVar("T")
_NEVER = decode.Version(-1, -1)


class Store(Generic[T]):
    """Objects by uid. `decode_as` makes one from its JSON and its predecessor, to share what is the same.

    One that is `unread` is decoded again from each listing: other CRDs change its JSON, and not its version.
    """

    def __init__(
        self, decode_as: Callable[[bytes | msgspec.Raw, T | None], T], unread: Callable[[T], bool] = lambda _: False
    ) -> None:
        self._decode, self._unread = decode_as, unread
        self._versions: dict[str, decode.Version] = {}
        self._meanwhile: set[str] = set()  # sighted since the listing began
        self.objects: dict[str, T] = {}

    def begin(self) -> None:
        """Begin a listing: sightings from here on are at least as new as its result."""
        self._meanwhile = set()

    def replace(self, raws: Iterable[bytes | msgspec.Raw]) -> None:
        """Take the complete listing. Objects that it lacks are gone, unless they were sighted since it began.

        What was sighted before it began gives way to it, whatever the versions: the API server's store may have been
        restored from a backup.
        """
        kept = self._meanwhile & self.objects.keys()
        objects, versions = {uid: self.objects[uid] for uid in kept}, {uid: self._versions[uid] for uid in kept}
        for raw in raws:
            uid, version = decode.identity(raw)
            if uid in self._meanwhile and uid not in kept:
                continue  # deleted since: a uid never comes back
            known = self._versions.get(uid, _NEVER)
            same = known == version and not self._unread(self.objects[uid])
            if same or (uid in kept and known > version):
                objects[uid], versions[uid] = self.objects[uid], known
            else:
                objects[uid], versions[uid] = self._decode(raw, self.objects.get(uid)), version
        self.objects, self._versions = objects, versions

    def take(self, news: News) -> bool:
        """Take one sighting; returns whether anything is new.

        The answer to the operator's own write is new only if it also shows an edit that came in between.
        """
        uid, version = decode.identity(news.raw)
        if news.gone:
            self._meanwhile.add(uid)
            self._versions.pop(uid, None)
            return self.objects.pop(uid, None) is not None
        known = self._versions.get(uid, _NEVER)
        if known >= version:
            return False
        self._meanwhile.add(uid)
        self.objects[uid] = self._decode(news.raw, self.objects.get(uid))
        self._versions[uid] = version
        return not news.own or known.generation != version.generation
