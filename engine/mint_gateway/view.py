"""The gateway's view of one base's part of the placement map: immutable, replaced as a whole at each change."""

from collections.abc import Iterable, Mapping

import msgspec

from mint_contracts.errors import MapUnavailable
from mint_contracts.map_reader import Pulse
from mint_contracts.records import BaseRecord, EngineRecord, Held, Placement, Tier
from mint_contracts.source import Source, child
from mint_gateway.security.scope import EVERYTHING, Scope


class Engine(msgspec.Struct, frozen=True):
    """One engine as the map knows it. `record` is its last report; `alive` says that its heartbeat continues."""

    name: str
    record: EngineRecord
    alive: bool
    held: Mapping[str, Held]
    published: Mapping[str, Source] = {}  # the revisions published by Trainer calls that it reports

    @property
    def available(self) -> bool:
        """Whether the engine answers requests sent now, according to the map."""
        return self.alive and self.record.ready


class MapView(msgspec.Struct, frozen=True):
    """One base. `version` is None if the operator's part was never complete, or was lost; the last known one stays.

    `announced` is the operator's record of the base while the map has no version. It locates the base's catalog, but
    no request is answered from it, because the placements of waves are not known then.
    """

    base: str
    version: int | None = None
    record: BaseRecord | None = None
    placements: Mapping[str, Placement] = {}
    engines: Mapping[str, Engine] = {}
    catalogued: Mapping[str, Source] = {}  # the catalog's sources of the adapters that a request asks for
    published: Mapping[str, Source] = {}  # the newest revision of each name published by Trainer calls
    scope: Scope = EVERYTHING  # the viewer's: none of the above contains an adapter that it does not open
    announced: BaseRecord | None = None

    def source(self, adapter: str) -> Source | None:
        """Return where the adapter is fetched from: its placement's source, else as `stored`."""
        if placement := self.placements.get(adapter):
            return placement.source
        return self.stored(adapter)

    def stored(self, adapter: str) -> Source | None:
        """Return where any engine of the base reads the adapter on demand: the catalog's source, else the newest one
        published by calls (as engines last reported), else its place in the base's store."""
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
        """Whether the base is known to have a catalog."""
        return self.record is not None and self.record.catalog is not None

    def may_store(self, adapter: str) -> bool:
        """Return whether the base's store may have the adapter. Out of scope counts like nonexistent."""
        return self.record is not None and self.record.store is not None and "@" not in adapter

    def may_have(self, adapter: str) -> bool:
        """Return whether the base may have the adapter, as far as the map tells; scopes as in `may_store`."""
        return self.has_catalog or self.may_store(adapter) or adapter in self.published

    def source_for_engine(self, adapter: str, engine: str) -> Source | None:
        """Return the source to send to an engine; None if the engine finds the adapter by itself."""
        if placement := self.placements.get(adapter):
            return placement.source
        if (known := self.catalogued.get(adapter)) or "@" in adapter:
            return known
        newest = self.published.get(adapter)
        its = self.engines[engine].published.get(adapter)
        return None if newest == its else newest  # if equal, the engine's own may be newer by now

    def with_source(self, adapter: str, source: Source | None) -> "MapView":
        """Return the view with the catalog's source of an adapter added; itself if the source is None."""
        return self if source is None else msgspec.structs.replace(self, catalogued={adapter: source})

    def copy(self, engine: Engine, adapter: str) -> Held | None:
        """Return the engine's copy of the adapter if it is usable: on disk or warmer, from the right source."""
        held = engine.held.get(adapter)
        if held is None or held.tier is Tier.REMOTE or held.source != self.source(adapter):
            return None
        return held

    def answers_with(self, adapter: str, engine: str, uri: str) -> bool:
        """Return whether requests for the name get what a Trainer call has published at `uri`, or something newer.

        An engine that alone has a copy answers with the newest revision of its lease, even before it reports that.
        """
        known = self.published.get(adapter)
        if known is None or known.uri >= uri:
            return known is not None
        holders = [name for name, each in self.engines.items() if self.copy(each, adapter)]
        return holders == [engine] and known.uri.rpartition("-")[0] == uri.rpartition("-")[0]

    def is_held(self, adapter: str) -> bool:
        """Return whether any engine has a usable copy."""
        return any(self.copy(engine, adapter) for engine in self.engines.values())


def incomplete(base: str) -> MapUnavailable:
    """Return the error that the operator's part of a base is missing: not written yet, or lost."""
    return MapUnavailable(base, "the placement map is not complete yet; retry", retry_after_s=1.0)


def unread(subject: str) -> MapUnavailable:
    """Return the error that `subject` is unknown, but may have been added since Redis went away."""
    message = "is not in the last known placement map, and Redis is not responding; retry"
    return MapUnavailable(subject, message, retry_after_s=1.0)


def merge(
    known: MapView,
    pulse: Pulse,
    held: Mapping[str, Mapping[str, Held]],
    *,
    settled: bool,
    rereporting: Mapping[str, int],
) -> MapView:
    """Return `known` with the engines of a fresh pulse; `held` has the holdings of the engines that changed them.

    An engine without a heartbeat is dead if the map is `settled`: Redis has answered, without losing data, for longer
    than a heartbeat lives. Before that its silence means nothing, and its last report still counts: a returning Redis
    has missed heartbeats. An engine in `rereporting` (name -> incarnation) is writing its full report again: it is
    alive, and its last report counts until the new one is complete, which takes longer with many adapters.
    """
    engines: dict[str, Engine] = {}
    for name in sorted({*known.engines, *pulse.engines}):
        before, record = known.engines.get(name), pulse.engines.get(name)
        if record is not None:
            if name in held or before is None:
                engines[name] = live_engine(name, record, held.get(name, {}))
            else:
                engines[name] = msgspec.structs.replace(before, record=record, alive=True)
        elif before is not None and (not settled or rereporting.get(name) == before.record.incarnation):
            engines[name] = before
        elif before is not None and name in pulse.engines:
            engines[name] = msgspec.structs.replace(before, alive=False)
    return msgspec.structs.replace(known, engines=engines, published=newest_published(engines.values()))


def live_engine(name: str, record: EngineRecord, held: Mapping[str, Held]) -> Engine:
    """Return a live engine with these holdings."""
    published = {adapter: each.source for adapter, each in held.items() if each.published}
    return Engine(name=name, record=record, alive=True, held=held, published=published)


def newest_published(engines: Iterable[Engine]) -> dict[str, Source]:
    """Return the newest published revision of each name that these engines report.

    A name's revisions are subfolders of one folder; the subfolders' names sort by lease and step.
    """
    newest: dict[str, Source] = {}
    for engine in engines:
        for adapter, source in engine.published.items():
            if adapter not in newest or source.uri > newest[adapter].uri:
                newest[adapter] = source
    return newest


def stale_holdings(known: MapView, pulse: Pulse) -> list[str]:
    """Return the pulse's engines whose holdings have changed since they were read."""
    changed = []
    for name, record in pulse.engines.items():
        if record is None:
            continue
        before = known.engines.get(name)
        if before is None or _edition(before.record) != _edition(record):
            changed.append(name)
    return changed


def lost_something(known: MapView, pulse: Pulse) -> bool:
    """Return whether Redis has lost data: it came back empty, or with an older state."""
    if not pulse.engines.keys() >= known.engines.keys():
        return True
    return known.version is not None and (pulse.version is None or pulse.version < known.version)


def _edition(record: EngineRecord) -> tuple[int, int]:
    return record.incarnation, record.sequence
