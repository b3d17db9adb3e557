"""Reading the catalog: anybody may. Raises MapUnavailable when Redis does not answer, or has not all of it."""

import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.catalog_calls import call
from mint_contracts.entries import Entry
from mint_contracts.functions import bounded
from mint_contracts.names import split_asked
from mint_contracts.packed_entries import (
    Found,
    found_in,
    identity,
    identity_of,
    is_retired,
    labels_match,
    labels_of,
    numbers,
    unpack,
)
from mint_contracts.source import Source

LEAVES_PER_CALL = 16
LEAVES_PER_PAGE = 256  # looked through at most for one page, however few of them match
PAGE_MAX = 1000
NAMES_PER_CALL = 1000  # Redis does nothing else for some milliseconds

_US = 1_000_000

EVERYTHING = "*"  # news of more names than are worth telling


class CatalogState(msgspec.Struct, frozen=True):
    """What is true of a whole catalog."""

    count: int  # adapters that are not retired
    version: int  # grows with every change
    complete: bool  # if not, Redis has lost it, and its manifests are still being read
    manifests: str  # the URI that it was read from
    older: int = 0  # revisions that are known beside the newest ones
    retired: int = 0  # names of which it is known that they are
    tallied: bool = True  # whether `older` and `retired` are of all that there is

    def whole(self, manifests: Source) -> bool:
        """Whether Redis has all that these manifests hold."""
        return self.complete and self.manifests == manifests.uri


class Page(msgspec.Struct, frozen=True):
    """Some of the entries asked for, by name. `after` is where the next page goes on; empty after the last."""

    entries: tuple[Entry, ...]
    after: str


class CatalogReader:
    """Reads the catalog of any base."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def state(self, base: str) -> CatalogState:
        """How much there is, and whether that is all."""
        fields = ("complete", "manifests", "copy", "tallied", "count", "version", "older", "retired")
        found = await bounded(lambda: self._redis.hmget(keys.catalog(base), fields))
        complete, manifests, copy, tallied = found[:4]
        count, version, older, retired = (max(0, int(number or 0)) for number in found[4:])
        return CatalogState(count, version, complete == "1", manifests or "", older, retired, copy == tallied)

    async def find(self, base: str, name: str, revision: str = "") -> Entry | None:
        """The newest state of an adapter, or the one of that revision; None where there is none. One round trip.

        Of a name that was retired, and not registered since, an entry that says so, whatever revision is asked for.
        """
        answer = await call(
            self._redis, "find", base, [keys.catalog_leaf(base, ""), name, identity_of(revision) if revision else ""]
        )
        if not answer:
            return None
        found = found_in(answer)
        if is_retired(found.value):
            return Entry(name, retired=True)
        entry = unpack(name, found)
        return entry if not revision or entry.revision == revision else None

    async def registered(self, base: str, sources: Mapping[str, Source]) -> dict[str, int]:
        """When what lies at these was registered, in seconds since 1970, by NAME or NAME@REVISION.

        What the catalog does not know from there is left out.
        """
        found: dict[str, int] = {}
        asked = list(sources.items())
        for at in range(0, len(asked), NAMES_PER_CALL):
            piece = asked[at : at + NAMES_PER_CALL]
            args = [part for name, source in piece for part in (split_asked(name)[0], identity(source))]
            answer = await call(self._redis, "since", base, [keys.catalog_leaf(base, ""), *args])
            sequences = struct.unpack(f">{len(piece)}Q", answer)
            found |= {name: at // _US for (name, _), at in zip(piece, sequences, strict=True) if at}
        return found

    async def absent(self, base: str, names: Sequence[str]) -> list[str]:
        """Those of the names that are not in the catalog, or are retired."""
        found: list[str] = []
        for at in range(0, len(names), NAMES_PER_CALL):
            args = [keys.catalog_leaf(base, ""), *names[at : at + NAMES_PER_CALL]]
            found += (name.decode() for name in await call(self._redis, "absent", base, args))
        return found

    async def page(
        self, base: str, *, prefix: str = "", labels: Mapping[str, str] | None = None, after: str = "", limit: int
    ) -> Page:
        """Entries by name: those after the name `after` that begin with `prefix` and have all of `labels`.

        A page may hold fewer than `limit`, or none, although there are more: only an empty `after` is the end.
        """
        wanted, start = sorted((labels or {}).items()), max(prefix, after)
        entries: list[Entry] = []
        for _ in range(LEAVES_PER_PAGE // LEAVES_PER_CALL):
            begin, rows = await self._rows(base, start, prefix, after, wanted)
            for name, found in rows:
                entries.append(unpack(name, found))
                if len(entries) == limit:
                    return Page(tuple(entries), name)
            if not begin or not (begin <= prefix or begin.startswith(prefix)):
                return Page(tuple(entries), "")
            start = begin
        # What comes before the next leaf has been looked through: go on at its first name, that one included.
        return Page(tuple(entries), _just_before(start))

    async def all(
        self, base: str, *, prefix: str = "", labels: Mapping[str, str] | None = None, limit: int
    ) -> list[Entry]:
        """Every such entry, or `limit` + 1 of them where there are more."""
        found: list[Entry] = []
        after = ""
        while True:
            page = await self.page(
                base, prefix=prefix, labels=labels, after=after, limit=min(PAGE_MAX, limit + 1 - len(found))
            )
            found += page.entries
            after = page.after
            if not after or len(found) > limit:
                return found

    @asynccontextmanager
    async def news(self, base: str) -> AsyncIterator[Callable[[float], Awaitable[Sequence[str]]]]:
        """`wait(timeout_s)` tells names that have changed, or EVERYTHING; none when the time is up."""
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        try:
            await bounded(lambda: pubsub.subscribe(keys.catalog(base, "news")))

            async def wait(timeout_s: float) -> Sequence[str]:
                message = await bounded(lambda: pubsub.get_message(timeout=timeout_s))
                return () if message is None else str(message["data"]).split(" ")

            yield wait
        finally:
            await pubsub.aclose()  # type: ignore[no-untyped-call]

    async def _rows(
        self, base: str, start: str, prefix: str, after: str, wanted: Sequence[tuple[str, str]]
    ) -> tuple[str, list[tuple[str, Found]]]:
        """Where the leaves after these begin, and what of these is asked for, by name."""
        begin, roots, labels, *leaves = await call(
            self._redis, "leaves", base, [keys.catalog_leaf(base, ""), start, str(LEAVES_PER_CALL)]
        )
        root_of, labels_by = _pairs(roots), _pairs(labels)
        matching = {number: labels_match(wanted, text) for number, text in labels_by.items()}
        rows = []
        for leaf in leaves:
            for field, value in zip(leaf[::2], leaf[1::2], strict=True):
                if b"@" in field or is_retired(value):
                    continue
                name = field.decode()
                if name <= after or not name.startswith(prefix):
                    continue
                root, number = numbers(value)
                found = Found(value, root_of.get(root, b"").decode(), labels_by.get(number, b""))
                if matching.get(number) or (number not in matching and labels_match(wanted, labels_of(found))):
                    rows.append((name, found))
        rows.sort(key=lambda row: row[0])
        return begin.decode(), rows


def _pairs(flat: Sequence[Any]) -> dict[int, bytes]:
    return {int(number): text for number, text in zip(flat[::2], flat[1::2], strict=True)}


def _just_before(name: str) -> str:
    """A text after every adapter's name that comes before `name`, and before `name` itself."""
    return name[:-1] + chr(ord(name[-1]) - 1) + "~"
