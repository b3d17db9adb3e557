"""Reading the catalog, open to everyone. Raises MapUnavailable if Redis does not answer or has only a part of it."""

import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.catalog_calls import call
from mint_contracts.entries import Entry
from mint_contracts.functions import bounded, listening
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
LEAVES_PER_PAGE = 256  # the most leaves searched for one page, however few entries match
PAGE_MAX = 1000
NAMES_PER_CALL = 1000  # one call keeps Redis busy for a few milliseconds
FOUND_PER_CALL = 250  # likewise, since each name's state is returned with its texts

_US = 1_000_000

EVERYTHING = "*"  # stands for more changed names than are worth listing


class CatalogState(msgspec.Struct, frozen=True):
    """Counts and completeness of a catalog in Redis."""

    count: int  # adapters that are not retired
    version: int  # grows with every change
    complete: bool  # False: Redis has lost it, and its manifests are still being read
    manifests: str  # the URI that it was read from
    older: int = 0  # revisions known beside the newest ones
    retired: int = 0  # names known to be retired
    tallied: bool = True  # whether `older` and `retired` count the complete catalog

    def is_complete_copy_of(self, manifests: Source) -> bool:
        """Whether Redis has everything that these manifests hold."""
        return self.complete and self.manifests == manifests.uri


class Page(msgspec.Struct, frozen=True):
    """A page of entries, sorted by name. The next page begins after `after`, which is empty on the last page."""

    entries: tuple[Entry, ...]
    after: str


class CatalogReader:
    """Reads the catalog of any base."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def state(self, base: str) -> CatalogState:
        """Return the catalog's counts and whether it is complete."""
        fields = ("complete", "manifests", "copy", "tallied", "count", "version", "older", "retired")
        found = await bounded(lambda: self._redis.hmget(keys.catalog(base), fields))
        complete, manifests, copy, tallied = found[:4]
        count, version, older, retired = (max(0, int(number or 0)) for number in found[4:])
        return CatalogState(count, version, complete == "1", manifests or "", older, retired, copy == tallied)

    async def find(self, base: str, name: str, revision: str = "") -> Entry | None:
        """Return an adapter's newest state, or its state at that revision; None if there is none. One round trip.

        For a name that is retired, return an entry with `retired` set, whatever revision is asked for.
        """
        [found] = await self.find_each(base, [(name, revision)])
        return found

    async def find_each(self, base: str, asked: Sequence[tuple[str, str]]) -> list[Entry | None]:
        """Return the result of `find` for each name with its revision or "", in as few round trips as they need."""
        found: list[Entry | None] = []
        for at in range(0, len(asked), FOUND_PER_CALL):
            piece = asked[at : at + FOUND_PER_CALL]
            args = [part for name, revision in piece for part in (name, identity_of(revision) if revision else "")]
            answers = await call(self._redis, "find", base, [keys.catalog_leaves(base), *args])
            found += [_entry(*each, answer) for each, answer in zip(piece, answers, strict=True)]
        return found

    async def registered(self, base: str, sources: Mapping[str, Source]) -> dict[str, int]:
        """Return when each source was registered, in seconds since 1970, by NAME or NAME@REVISION.

        Names that the catalog does not have with that source are left out.
        """
        found: dict[str, int] = {}
        asked = list(sources.items())
        for at in range(0, len(asked), NAMES_PER_CALL):
            piece = asked[at : at + NAMES_PER_CALL]
            args = [part for name, source in piece for part in (split_asked(name)[0], identity(source))]
            answer = await call(self._redis, "since", base, [keys.catalog_leaves(base), *args])
            sequences = struct.unpack(f">{len(piece)}Q", answer)
            found |= {name: at // _US for (name, _), at in zip(piece, sequences, strict=True) if at}
        return found

    async def absent(self, base: str, names: Sequence[str]) -> list[str]:
        """Return the names that are not in the catalog or are retired."""
        found: list[str] = []
        for at in range(0, len(names), NAMES_PER_CALL):
            args = [keys.catalog_leaves(base), *names[at : at + NAMES_PER_CALL]]
            found += (name.decode() for name in await call(self._redis, "absent", base, args))
        return found

    async def page(
        self, base: str, *, prefix: str = "", labels: Mapping[str, str] | None = None, after: str = "", limit: int
    ) -> Page:
        """Return entries sorted by name: those after `after` that begin with `prefix` and have all of `labels`.

        A page may hold fewer than `limit`, or none, although there are more: only an empty `after` marks the end.
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
        # Everything before the next leaf has been searched: go on at that leaf's first name, included.
        return Page(tuple(entries), _just_before(start))

    async def all(
        self, base: str, *, prefix: str = "", labels: Mapping[str, str] | None = None, limit: int
    ) -> list[Entry]:
        """Return every matching entry, or `limit` + 1 of them if there are more."""
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
        """Yield `wait(timeout_s)`, which returns changed names, or EVERYTHING; nothing when the time is up."""
        async with listening(self._redis, keys.catalog(base, "news")) as heard:

            async def wait(timeout_s: float) -> Sequence[str]:
                message = await heard(timeout_s)
                return () if message is None else message.split(" ")

            yield wait

    async def _rows(
        self, base: str, start: str, prefix: str, after: str, wanted: Sequence[tuple[str, str]]
    ) -> tuple[str, list[tuple[str, Found]]]:
        """Return where the leaves after these begin, and the matching entries of these, sorted by name."""
        begin, roots, labels, *leaves = await call(
            self._redis, "leaves", base, [keys.catalog_leaves(base), start, str(LEAVES_PER_CALL)]
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


def _entry(name: str, revision: str, answer: bytes) -> Entry | None:
    """Return what an answer of `find` says of a name, at that revision if it is not ""."""
    if not answer:
        return None
    found = found_in(answer)
    if is_retired(found.value):
        return Entry(name, retired=True)
    entry = unpack(name, found)
    return entry if not revision or entry.revision == revision else None


def _pairs(flat: Sequence[Any]) -> dict[int, bytes]:
    return {int(number): text for number, text in zip(flat[::2], flat[1::2], strict=True)}


def _just_before(name: str) -> str:
    """Return a text that sorts before `name` and after every adapter name that sorts before `name`."""
    return name[:-1] + chr(ord(name[-1]) - 1) + "~"
