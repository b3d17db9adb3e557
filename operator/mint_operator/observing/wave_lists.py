"""Looks up the adapters of waves, in the catalog and in manifests, in the background and within bounds.

Level-based: when the version of a base's catalog has grown, all answers from it are read again together, so that two
waves that share an adapter never see two states of it; a manifest is read again every minute.

A name resolves to its entry in the catalog or, if the catalog lacks it, to a folder in the store, if there is one.
A retired name resolves to nothing: a wave that names it is refused, or goes on without it if it is already served.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec
import structlog
from redis.exceptions import ResponseError

from mint_contracts.backoff import delay_s
from mint_contracts.catalog_calls import retired
from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.entries import Entry
from mint_contracts.errors import AdapterNotFound, Internal, MapUnavailable, MintError
from mint_contracts.names import split_asked
from mint_contracts.records import Mentions
from mint_contracts.source import Source, child
from mint_operator.observing.manifest_file import READ_S, read_manifest
from mint_operator.observing.wave_manifest import asked, entries
from mint_operator.planning import conditions
from mint_operator.planning.lookup import MOST_ADAPTERS, Lookup
from mint_operator.planning.refusal import NO_NAMES, Refusal
from mint_operator.planning.snapshot import Listed

AT_ONCE = 4
LOOK_S = 1.0  # between reads of a catalog's version
REREAD_S = 60.0
SHARE = 0.05  # of the time, at most, is spent on reading again
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 30.0

log = structlog.get_logger()


class Found(msgspec.Struct, frozen=True):
    """What a lookup gave when it last succeeded (None: it never did), and why it fails now.

    `gone` are those of its names that were retired; `listed` has the others. `from_map`: this stands in for a lookup
    that never succeeded, and may lack some of what it would give.
    """

    listed: tuple[Listed, ...] | None = None
    failure: Refusal | None = None
    gone: frozenset[str] = frozenset()
    from_map: bool = False


class _Result(msgspec.Struct, frozen=True):
    """What one read gave, and how long it took. A lookup that could not be read completely has a failure."""

    reads: Mapping[Lookup, Found]
    took_s: float


class _Work(msgspec.Struct):
    """A read that is under way, or when it is due again. `version` is the catalog's, as of the last read.

    `behind` are lookups first read while the version changed, so that their answers may be out of date.
    """

    task: "asyncio.Task[_Result] | None" = None
    version: int | None = None
    behind: frozenset[Lookup] = frozenset()
    due: float = 0.0
    failures: int = 0


class Lists:
    """Answers by lookup. `wake` is called when there is a new one. Use it only from the loop's thread."""

    def __init__(self, reader: CatalogReader, wake: Callable[[], None], look_s: float = LOOK_S) -> None:
        self._reader = reader
        self._wake = wake
        self._look_s = look_s
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._work: dict[str | Lookup, _Work] = {}  # by base to read known lookups again, by lookup to read one
        self._looked_at: dict[str, float] = {}
        self._versions: dict[str, int] = {}
        self.found: dict[Lookup, Found] = {}

    async def refresh(self, wanted: Collection[Lookup]) -> None:
        """Take finished reads, forget what is no longer wanted, and begin to read what is or may be new."""
        self._forget(wanted)
        now = asyncio.get_running_loop().time()
        for key, work in self._work.items():
            if work.task is not None and work.task.done():
                self._take(key, work, now)
        of_base: dict[str, list[Lookup]] = {}
        for lookup in wanted:
            if lookup.manifest:
                self._begin(lookup, (lookup,), now)
            else:
                of_base.setdefault(lookup.base, []).append(lookup)
        await self._look(of_base, now)
        for base, lookups in of_base.items():
            self._follow(base, lookups, now)

    def _forget(self, wanted: Collection[Lookup]) -> None:
        bases = {lookup.base for lookup in wanted}
        self.found = {lookup: each for lookup, each in self.found.items() if lookup in wanted}
        for key in [key for key in self._work if key not in (bases if isinstance(key, str) else wanted)]:
            if task := self._work.pop(key).task:
                task.cancel()

    async def _look(self, bases: Iterable[str], now: float) -> None:
        """Read the versions of these bases' catalogs, at most every `look_s`.

        After Redis fails to answer for one base, the others are not tried: the pass would wait as long for each.
        """
        for base in bases:
            if now - self._looked_at.get(base, float("-inf")) < self._look_s:
                continue
            self._looked_at[base] = now
            try:
                self._versions[base] = (await self._reader.state(base)).version
            except MapUnavailable as error:
                log.warning("catalog versions not read", base=base, error=str(error))
                return
            except ResponseError as error:
                log.warning("catalog version not read", base=base, error=str(error))

    def _follow(self, base: str, lookups: Sequence[Lookup], now: float) -> None:
        """Read new lookups at once; read known ones again if the catalog has changed or their last read failed."""
        work, version = self._work.setdefault(base, _Work()), self._versions.get(base)
        if work.version is None:
            work.version = version
        new = [lookup for lookup in lookups if lookup not in self.found]
        for lookup in new:
            self._begin(lookup, (lookup,), now)
        known = [lookup for lookup in lookups if lookup in self.found]
        if version != work.version:
            if self._begin(base, known, now):
                work.version, work.behind = version, frozenset(new)
            return
        again = [lookup for lookup in known if lookup in work.behind or self._fails(lookup)]
        if again and self._begin(base, again, now):
            work.behind -= frozenset(again)

    def _fails(self, lookup: Lookup) -> bool:
        """Whether the last read failed in a way that may pass."""
        failure = self.found[lookup].failure
        return failure is not None and not failure.terminal

    def _begin(self, key: str | Lookup, lookups: Sequence[Lookup], now: float) -> bool:
        work = self._work.setdefault(key, _Work())
        if work.task is not None or now < work.due:
            return False
        work.task = asyncio.create_task(self._read_all(lookups))
        work.task.add_done_callback(lambda _: self._wake())
        return True

    def _take(self, key: str | Lookup, work: _Work, now: float) -> None:
        """Store the results of a read, and set when it is due again: later if it took long or failed."""
        task, work.task = work.task, None
        result = _Result({}, 0.0) if task is None or task.cancelled() else task.result()
        for lookup, read in result.reads.items():
            self._enter(lookup, read)
        failed = any(read.failure is not None and not read.failure.terminal for read in result.reads.values())
        work.failures = work.failures + 1 if failed else 0
        rest = max(result.took_s / SHARE, self._look_s)
        if failed:
            rest = max(rest, delay_s(work.failures, first_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S))
        elif not isinstance(key, str):
            rest = max(rest, REREAD_S)
        work.due = now + rest

    def _enter(self, lookup: Lookup, read: Found) -> None:
        before = self.found.get(lookup, Found())
        listed = before.listed
        # A wave begins to be served only once all of it may be.
        if read.listed is not None and read.listed != listed and not (read.gone and listed is None):
            listed = read.listed
        elif read.listed is None and listed is not None:
            listed = tuple(each for each in listed if each.name not in read.gone)
        found = Found(listed, read.failure, read.gone)
        if found != before or lookup not in self.found:
            self.found[lookup] = found

    async def _read_all(self, lookups: Sequence[Lookup]) -> _Result:
        began = asyncio.get_running_loop().time()
        reads = await asyncio.gather(*[self._read(lookup) for lookup in lookups])
        return _Result(dict(zip(lookups, reads, strict=True)), asyncio.get_running_loop().time() - began)

    async def _read(self, lookup: Lookup) -> Found:
        try:
            named: Sequence[str | Entry] = lookup.names
            if lookup.manifest:  # has its own time limit
                named = await read_manifest(lookup.namespace, lookup.manifest, entries)
            async with self._gate, asyncio.timeout(READ_S):
                return await (self._named(lookup, named) if named else self._selected(lookup))
        except MintError as error:
            failure = Refusal.of(error)
        except (TimeoutError, ResponseError) as error:
            message = (
                f"the adapters of the wave could not be looked up ({error or f'no answer within {READ_S:.0f} s'})"
            )
            failure = Refusal("MapUnavailable", f"{message}; retrying", terminal=False, mentions=NO_NAMES)
        except Exception as error:  # a defect that one wave's lookup triggers must not fail the others' passes
            log.exception("lookup failed", base=lookup.base, manifest=lookup.manifest)
            message = (
                f"the adapters of the wave could not be looked up ({type(error).__name__}, see the operator's log)"
            )
            failure = Refusal(Internal.__name__, f"{message}; retrying", terminal=False, mentions=NO_NAMES)
        return Found(failure=failure, gone=self.found.get(lookup, Found()).gone)  # still, as far as is known

    async def _selected(self, lookup: Lookup) -> Found:
        labels = dict(lookup.labels)
        found = await self._reader.all(lookup.base, prefix=lookup.prefix, labels=labels, limit=MOST_ADAPTERS)
        if len(found) > MOST_ADAPTERS:
            message = f"the selector matches more than {MOST_ADAPTERS} adapters; narrow it, and create several waves"
            return Found(failure=Refusal(conditions.TOO_MANY_ADAPTERS, message, mentions=NO_NAMES))
        return Found(tuple(Listed(entry.name, entry.source) for entry in found))

    async def _named(self, lookup: Lookup, named: Sequence[str | Entry]) -> Found:
        """Resolve names and entries. Retired ones are left out, and the failure names the first of them.

        If any name is unknown, nothing is listed, and the failure names the first unknown one.
        """
        known = await self._entries(lookup, [_asked(each) for each in named if isinstance(each, str) or not each.uri])
        found: list[Listed] = []
        gone: list[str] = []
        unknown: Refusal | None = None
        for each in named:
            if isinstance(each, Entry) and each.uri:
                found.append(Listed(each.name, each.source))
                continue
            name = _asked(each)
            try:
                source = _source(lookup, name, known.get(name))
            except AdapterNotFound as error:
                unknown = unknown or Refusal.of(error, Mentions((name,)))
                continue
            if source is not None:
                found.append(Listed(name, source))
            else:
                gone.append(name)
        if unknown is not None:
            return Found(failure=unknown, gone=frozenset(gone))
        if not gone:
            return Found(tuple(found))
        why = retired(gone[0], lookup.base, "remove it from the wave")
        return Found(tuple(found), Refusal.of(why, Mentions((gone[0],))), frozenset(gone))

    async def _entries(self, lookup: Lookup, names: Sequence[str]) -> dict[str, Entry]:
        """Return the catalog's entries of those names, with or without a revision, that it has."""
        if not lookup.catalog:
            return {}
        found = await self._reader.find_each(lookup.base, [split_asked(name) for name in names])
        return {name: entry for name, entry in zip(names, found, strict=True) if entry is not None}


def _asked(of: str | Entry) -> str:
    """Return the name by which it is looked up, with or without a revision."""
    return of if isinstance(of, str) else asked(of)


def _source(lookup: Lookup, name: str, entry: Entry | None) -> Source | None:
    """Return the source of a name, given what the catalog has of it; None if retired. Raises AdapterNotFound."""
    if entry is not None:
        return None if entry.retired else entry.source
    if lookup.store is not None and "@" not in name:
        return child(lookup.store, name)
    message = f"has no uri, and BaseModel {lookup.base} has neither a catalog nor a store"
    if lookup.catalog:
        message = f"is not in the catalog of BaseModel {lookup.base}"
    message += "; register it, or remove it from the wave"
    raise AdapterNotFound(f"adapter {name!r}", message)
