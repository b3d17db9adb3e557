"""What the gateway knows of one base's part of the placement map: immutable, replaced whole when anything changes."""

from collections.abc import Iterable, Mapping

import msgspec

from mint_contracts.errors import MapUnavailable
from mint_contracts.map_reader import Pulse
from mint_contracts.records import BaseRecord, EngineRecord, Held, Placement, Tier
from mint_contracts.source import Source, child
from mint_gateway.scope import EVERYTHING, Scope


class Engine(msgspec.Struct, frozen=True):
    """One engine as the map knows it. `record` is its last word; `alive` says that its heartbeat goes on."""

    name: str
    record: EngineRecord
    alive: bool
    held: Mapping[str, Held]
    published: Mapping[str, Source] = {}  # as it tells of them, the revisions that Trainer calls have published

    @property
    def available(self) -> bool:
        """The map says that a request sent now is answered."""
        return self.alive and self.record.ready


class MapView(msgspec.Struct, frozen=True):
    """One base. `version` None: the operator's part was never complete, or was lost and is the last one known.

    `announced` is what the operator says of the base while the map has no version. Its catalog is read by that;
    nothing is answered by it, for what waves have placed is not known with it.
    """

    base: str
    version: int | None = None
    record: BaseRecord | None = None
    placements: Mapping[str, Placement] = {}
    engines: Mapping[str, Engine] = {}
    catalogued: Mapping[str, Source] = {}  # what the catalog says of adapters that a request asks for
    published: Mapping[str, Source] = {}  # the newest revision of each name that Trainer calls have published
    scope: Scope = EVERYTHING  # of whoever looks at it: adapters that this does not open are in none of the above
    announced: BaseRecord | None = None

    def source(self, adapter: str) -> Source | None:
        """Where the adapter is fetched from: its placement's source, else as `stored`."""
        if placement := self.placements.get(adapter):
            return placement.source
        return self.stored(adapter)

    def stored(self, adapter: str) -> Source | None:
        """Where any engine of the base reads the adapter on demand: the catalog's word, else that of engines (when
        they were last alive) on what calls have published, else its place in the base's store."""
        if not self.scope.adapter(adapter):
            return None
        if known := self.catalogued.get(adapter):
            return known
        if "@" in adapter:  # only the catalog knows revisions
            return None
        if published := self.published.get(adapter):
            return published
        store = self.record.store if self.record else None
        return child(store, adapter) if store else None

    @property
    def has_catalog(self) -> bool:
        """Whether the base is known to keep one."""
        return self.record is not None and self.record.catalog is not None

    def may_store(self, adapter: str) -> bool:
        """Whether the base's store may have it; one that is out of scope, as one that does not exist."""
        return self.record is not None and self.record.store is not None and "@" not in adapter

    def may_have(self, adapter: str) -> bool:
        """Whether it may be here for all that the map tells; one that is out of scope, as one that does not exist."""
        return self.has_catalog or self.may_store(adapter) or adapter in self.published

    def whence(self, adapter: str, engine: str) -> Source | None:
        """What an engine is told of where the adapter is: what it does not know by itself, or may not yet know."""
        if placement := self.placements.get(adapter):
            return placement.source
        if (known := self.catalogued.get(adapter)) or "@" in adapter:
            return known
        newest = self.published.get(adapter)
        its = self.engines[engine].published.get(adapter)
        return None if newest == its else newest  # its own may be newer by now

    def with_source(self, adapter: str, source: Source | None) -> "MapView":
        """The same view, knowing from the catalog where an adapter is; itself where that is None."""
        return self if source is None else msgspec.structs.replace(self, catalogued={adapter: source})

    def copy(self, engine: Engine, adapter: str) -> Held | None:
        """The engine's copy of the adapter, if it can answer from it: on disk or warmer, from the right source."""
        held = engine.held.get(adapter)
        if held is None or held.tier is Tier.REMOTE or held.source != self.source(adapter):
            return None
        return held

    def is_held(self, adapter: str) -> bool:
        """Whether an engine has such a copy."""
        return any(self.copy(engine, adapter) for engine in self.engines.values())


def incomplete(base: str) -> MapUnavailable:
    """That the map does not know what is wanted of a base: the operator has yet to write it, or it was lost."""
    return MapUnavailable(base, "the placement map is not complete yet; retry", retry_after_s=1.0)


def unread(subject: str) -> MapUnavailable:
    """That nobody can tell whether there is such a thing: Redis is away, and it may have come since."""
    message = "is not in the last known placement map, and Redis is not responding; retry"
    return MapUnavailable(subject, message, retry_after_s=1.0)


def merge(
    known: MapView,
    pulse: Pulse,
    held: Mapping[str, Mapping[str, Held]],
    *,
    settled: bool,
    telling: Mapping[str, int],
) -> MapView:
    """`known` with the engines of a fresh pulse; `held` has the holdings of engines that changed them.

    An engine whose heartbeat is missing is dead if the map is `settled`: Redis has answered, with all it ever knew,
    for longer than a heartbeat lives. Before that its silence tells nothing, and its last word goes on counting:
    a Redis that comes back has lost the heartbeats of its absence. One that is `telling` it all anew (the incarnation
    of each that does) is alive, and its last word counts until it has: with many of them that takes longer.
    """
    engines: dict[str, Engine] = {}
    for name in sorted({*known.engines, *pulse.engines}):
        before, record = known.engines.get(name), pulse.engines.get(name)
        if record is not None:
            if name in held or before is None:
                engines[name] = heard(name, record, held.get(name, {}))
            else:
                engines[name] = msgspec.structs.replace(before, record=record, alive=True)
        elif before is not None and (not settled or telling.get(name) == before.record.incarnation):
            engines[name] = before
        elif before is not None and name in pulse.engines:
            engines[name] = msgspec.structs.replace(before, alive=False)
    return msgspec.structs.replace(known, engines=engines, published=newest_published(engines.values()))


def heard(name: str, record: EngineRecord, held: Mapping[str, Held]) -> Engine:
    """A living engine that holds these."""
    published = {adapter: each.source for adapter, each in held.items() if each.published}
    return Engine(name=name, record=record, alive=True, held=held, published=published)


def newest_published(engines: Iterable[Engine]) -> dict[str, Source]:
    """The newest revision of each name that is published, as these tell.

    All of a name's lie in one folder, each in one of its own, whose name sorts by lease and step.
    """
    newest: dict[str, Source] = {}
    for engine in engines:
        for adapter, source in engine.published.items():
            if adapter not in newest or source.uri > newest[adapter].uri:
                newest[adapter] = source
    return newest


def stale_holdings(known: MapView, pulse: Pulse) -> list[str]:
    """The engines of the pulse whose holdings are not those already known."""
    changed = []
    for name, record in pulse.engines.items():
        if record is None:
            continue
        before = known.engines.get(name)
        if before is None or _edition(before.record) != _edition(record):
            changed.append(name)
    return changed


def lost_something(known: MapView, pulse: Pulse) -> bool:
    """True if Redis no longer knows what it knew: it came back empty, or older than it was."""
    if not pulse.engines.keys() >= known.engines.keys():
        return True
    return known.version is not None and (pulse.version is None or pulse.version < known.version)


def _edition(record: EngineRecord) -> tuple[int, int]:
    return record.incarnation, record.sequence
