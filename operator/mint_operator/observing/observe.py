"""Builds a snapshot from the API server and Redis."""

import math
import time
from collections.abc import Callable, Mapping

import structlog

from mint_contracts.errors import MapUnavailable
from mint_contracts.reasons import Reasons
from mint_contracts.records import Failure
from mint_operator.observing.cluster_view import ClusterView
from mint_operator.observing.dirt import Part
from mint_operator.observing.map_view import MapView
from mint_operator.observing.train_inputs import InputsView
from mint_operator.observing.train_view import TrainView
from mint_operator.observing.wave_adapters import WaveAdapters
from mint_operator.planning import engines
from mint_operator.planning.snapshot import BaseMap, Release, Snapshot

GRACE_PARTS = 3  # statuses update the remaining wait for an engine that is away this often: every ten seconds

log = structlog.get_logger()


class Observer:
    """Holds both halves' views; `observe` refreshes what is dirty."""

    def __init__(
        self,
        cluster: ClusterView,
        placement_map: MapView,
        training: TrainView,
        inputs: InputsView,
        adapters: WaveAdapters,
        release: Release,
    ) -> None:
        self._cluster = cluster
        self._adapters = adapters
        self._map = placement_map
        self._training = training
        self._inputs = inputs
        self._release = release
        self._maps: dict[str, BaseMap] = {}
        self._redis_ok = True
        self._reasons = Reasons()  # of Redis's outage
        self.quiet = False  # the last `observe` found nothing new
        self.clock: Callable[[], float] = time.time  # seconds since 1970, by which the operator plans

    async def observe(self, parts: frozenset[Part], apply_failures: Mapping[str, Failure]) -> Snapshot:
        """Return a snapshot of now. Raises KubeError; an outage of Redis is part of the snapshot instead."""
        changed = await self._cluster.refresh(parts)
        await self._look_at_map()
        cluster = self._cluster
        now = self.clock()
        waves = await self._adapters.attach(cluster.waves, cluster.bases, self._maps, now)
        await self._inputs.refresh(parts, cluster.waves)
        self.quiet = self.quiet and not changed and not self._adapters.changed and not self._inputs.changed
        return Snapshot(
            now=now,
            release=self._release,
            bases=cluster.bases,
            waves=waves,
            pods=cluster.pods,
            unmade=cluster.unmade,
            children=cluster.children,
            groups=cluster.groups,
            redis_ok=self._redis_ok,
            maps=self._maps,
            training=self._training.known,
            inputs=self._inputs.inputs,
            apply_failures=apply_failures,
        )

    async def _look_at_map(self) -> None:
        before, answered, trained = self._maps, self._redis_ok, self._training.known
        try:
            given = self._engines()
            self._maps = await self._map.look(given)
            await self._training.look(self._maps, given)
        except MapUnavailable as error:
            is_new = self._reasons.is_new(error)
            if self._redis_ok:
                log.warning("placement map unavailable", error=str(error))
            elif is_new:
                log.warning("placement map still unavailable", error=str(error))
            self._maps, self._redis_ok = {}, False
        else:
            if not self._redis_ok:
                log.info("placement map is back", bases=len(self._maps))
            self._redis_ok = True
            self._reasons.forget()
        same = _same(before, self._maps) and trained == self._training.known
        self.quiet = self._redis_ok and answered and same

    def _engines(self) -> dict[str, list[str]]:
        """Return the names of the engines that each base's workload has now."""
        children = self._cluster.children
        found = {}
        for key, base in self._cluster.bases.items():
            given = children.get(base.workload)
            count = given.replicas if given else 0
            found[key] = [engines.engine_name(base.meta.name, ordinal) for ordinal in range(count)]
        return found


def _same(before: Mapping[str, BaseMap], after: Mapping[str, BaseMap]) -> bool:
    """Whether the maps say the same; heartbeats with nothing new do not change them."""
    return before.keys() == after.keys() and all(_same_base(before[base], known) for base, known in after.items())


def _same_base(before: BaseMap, after: BaseMap) -> bool:
    return (
        after.state is before.state
        and after.state.version is not None
        and len(after.engines) == len(before.engines)
        and all(new is old for new, old in zip(after.engines, before.engines, strict=True))
        and _waited(after) == _waited(before)
        and after.busy == before.busy
        and after.demand == before.demand
    )


def _waited(known: BaseMap) -> list[dict[str, int]]:
    """Return how long engines have been away or not ready, in GRACE_PARTS of the grace; constant after the grace."""
    waits = ((known.away_s, engines.AWAY_GRACE_S), (known.unready_s, engines.LOADING_GRACE_S))
    return [
        {name: min(math.ceil(seconds * GRACE_PARTS / grace_s), GRACE_PARTS + 1) for name, seconds in of.items()}
        for of, grace_s in waits
    ]
