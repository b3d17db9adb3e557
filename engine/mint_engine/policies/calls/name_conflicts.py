"""Detects names already in use: what a policy of that name published would pass for another adapter, or be hidden.

Waves and the catalog take precedence over what engines publish, whoever came first; this only reports it in time. The
errors do not name the wave: it may belong to a namespace outside the scope of the caller's key.
"""

import structlog
from redis.asyncio import Redis

from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.errors import InvalidRequest, MapUnavailable, MintError
from mint_contracts.map_reader import MapReader
from mint_contracts.source import Source, child, parent
from mint_contracts.train_reader import TrainReader
from mint_contracts.training_records import published_in
from mint_engine.sources.looking import look_for

_log = structlog.get_logger(__name__)


class NameConflicts:
    """Name conflicts on one base. Policies publish to `training`; `store`, if any, holds the base's adapters."""

    def __init__(self, redis: Redis, base: str, training: Source, store: Source | None) -> None:
        self._map, self._waves, self._catalog = MapReader(redis), TrainReader(redis), CatalogReader(redis)
        self._base, self._training, self._store = base, training, store

    async def refuse(self, policy: str) -> None:
        """Raise InvalidRequest if the name is in use. What cannot be read now, or soon, counts as not using it."""
        try:
            found = await self._in_waves(policy) or await self._in_catalog(policy)
        except MapUnavailable as error:
            _log.warning("name_conflicts_unknown", policy=policy, error=str(error))
            found = ""
        if found := found or await self._in_store(policy):
            raise InvalidRequest(f"policy {policy!r}", f"cannot be published: {found}; create it under another name")

    async def _in_waves(self, policy: str) -> str:
        placed = await self._map.placement(self._base, policy)
        if placed is not None and not self._is_own(policy, placed.source):
            return f"adapter {policy!r} of a wave has its name"
        taken = await self._waves.has_policy(self._base, policy)
        return f"policy {policy!r} of a wave has its name" if taken else ""

    async def _in_catalog(self, policy: str) -> str:
        record = await self._map.base_record(self._base)
        if record is None or record.catalog is None:
            return ""
        entry = await self._catalog.find(self._base, policy)
        if entry is None or (not entry.retired and self._is_own(policy, entry.source)):
            return ""
        state = "was retired from" if entry.retired else "is in"
        return f"adapter {policy!r}, which has its name, {state} the catalog of {self._base}"

    async def _in_store(self, policy: str) -> str:
        if self._store is None:
            return ""
        try:
            known = await look_for(child(self._store, policy), "policies")
        except MintError:  # nobody could load it now
            return ""
        return f"adapter {policy!r} in the store of {self._base} has its name" if known else ""

    def _is_own(self, policy: str, source: Source) -> bool:
        """Whether `source` is a revision that a policy of this name has published."""
        return parent(source) == published_in(self._training, policy).uri
