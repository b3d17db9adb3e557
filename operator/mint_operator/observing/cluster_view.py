"""The Kubernetes half of observation: lists of our objects, read again only for the parts that are dirty.

The lists of the resync are read beside the passes, so that nobody who has changed an object waits for them.
"""

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from mint_contracts.records import Failure
from mint_operator.kube import Kube, KubeError, namespaced
from mint_operator.observing import decode
from mint_operator.observing.dirt import Part
from mint_operator.observing.feed import Feed
from mint_operator.observing.kube_events import About, warnings
from mint_operator.observing.store import Store
from mint_operator.planning.engines import engine_name
from mint_operator.planning.groups import WORKLOADS
from mint_operator.planning.manifests import MANAGED_BY, MANAGER, REDIS_SECRET
from mint_operator.planning.snapshot import Child, EnginePod, ObservedBase, ObservedWave

OURS = f"{MANAGED_BY}={MANAGER}"
LISTING_SHARE = 0.1  # of the time, at most, goes into lists that only look for what the watch has missed
_LISTED = {Part.BASES: "BaseModel", Part.WAVES: "AdapterWave", Part.PODS: "Pod"}
_CHILDREN = ("Service", "ServiceAccount", "PodDisruptionBudget")


_Stores = Mapping[str, Store[Any]]
_Lists = Mapping[str, list[msgspec.Raw]]


class ClusterView:
    """What the API server says, as of each part's last listing and what the watch has seen since."""

    def __init__(self, kube: Kube, namespaces: Sequence[str], feed: Feed, *, secrets: bool, policies: bool) -> None:
        self._kube = kube
        self._namespaces = namespaced(namespaces)
        self._feed = feed
        self._secrets = secrets  # whether engines need a Secret for Redis
        self._kinds = (*_CHILDREN, "NetworkPolicy") if policies else _CHILDREN
        self._bases = Store(_base)
        self._waves = Store(_wave)
        self._pods = Store(_pod)
        self._stores: _Stores = {"BaseModel": self._bases, "AdapterWave": self._waves, "Pod": self._pods}
        self._listing: asyncio.Task[_Lists] | None = None
        self._list_at = 0.0  # not before; by the loop's clock
        self._unarranged = False  # the stores have taken in what the properties do not tell yet
        self.bases: dict[str, ObservedBase] = {}
        self.waves: tuple[ObservedWave, ...] = ()
        self.pods: dict[str, tuple[EnginePod, ...]] = {}
        self.unmade: Mapping[str, Failure] = {}  # by base: why pods of its engines cannot be made
        self._warnings: Mapping[About, Failure] = {}  # what Events alone tell
        self.groups = True  # whether the API server has LeaderWorkerSets, as far as a base wants one
        self._wanted_groups = False
        self._workloads: dict[tuple[str, str, str], Child] = {}
        self._children: dict[tuple[str, str, str], Child] = {}

    @property
    def children(self) -> dict[tuple[str, str, str], Child]:
        """Every object that the operator made."""
        return self._workloads | self._children

    async def refresh(self, parts: frozenset[Part]) -> bool:
        """List the dirty parts again, and take in what the watch has seen. Returns whether anything may be new.

        A part is replaced whole, and only if all of it could be read.
        """
        news = self._feed.take()  # before listing: what a listing misses comes after this
        changed = bool(parts - {Part.MAP, Part.WHOLE})
        for each in news:
            changed |= self._stores[each.kind].take(each)
        self._unarranged |= changed or bool(news)  # until that is done, however often a list fails before it
        dirty = [kind for part, kind in _LISTED.items() if part in parts]
        if dirty:
            self._end_listing()
            self._replace(await self._lists(dirty))
        elif self._listing is not None and self._listing.done():
            self._replace(self._end_listing() or {})
            changed = self._unarranged = True
        if Part.WHOLE in parts and self._listing is None and asyncio.get_running_loop().time() >= self._list_at:
            self._listing = asyncio.create_task(self._lists(list(_LISTED.values())))
        if self._unarranged:
            self._arrange()
            self._unarranged = False
        if Part.WORKLOADS in parts or self._wants_groups() > self._wanted_groups:
            await self._read_workloads()
            await self._read_events()
        if Part.CHILDREN in parts:  # after the bases, whose namespaces it asks for
            self._children = await self._read_children()
        return changed

    def _lists(self, kinds: Sequence[str]) -> Coroutine[Any, Any, _Lists]:
        """Lists of these kinds; what is sighted from now on counts beside what they will say."""
        for kind in kinds:
            self._stores[kind].begin()
        return self._read_lists(kinds)

    async def _read_lists(self, kinds: Sequence[str]) -> _Lists:
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = await asyncio.gather(*[self._items(kind, OURS if kind == "Pod" else "") for kind in kinds])
        self._list_at = loop.time() + (loop.time() - began) / LISTING_SHARE
        return dict(zip(kinds, found, strict=True))

    def _end_listing(self) -> _Lists | None:
        """What was listed beside the passes, if that has ended. Raises KubeError."""
        listing, self._listing = self._listing, None
        if listing is not None and not listing.done():
            listing.cancel()
            return None
        return None if listing is None else listing.result()

    def _replace(self, lists: _Lists) -> None:
        for kind, raws in lists.items():
            self._stores[kind].replace(raws)

    def _arrange(self) -> None:
        self.bases = {base.meta.key: base for base in self._bases.objects.values()}
        self.waves = tuple(self._waves.objects.values())
        pods: dict[str, list[EnginePod]] = defaultdict(list)
        for base, pod in self._pods.objects.values():
            trouble = self._warnings.get(_about(base, pod)) if pod.waits else None
            pods[base].append(pod if trouble is None else msgspec.structs.replace(pod, trouble=trouble))
        self.pods = {base: tuple(each) for base, each in pods.items()}

    def _wants_groups(self) -> bool:
        return any(base.spec.engine.nodes > 1 for base in self.bases.values())

    async def _read_workloads(self) -> None:
        single, grouped = WORKLOADS
        found = [decode.child(single, raw) for raw in await self._items(single, OURS)]
        served, wanted = True, self._wants_groups()
        if wanted:
            try:
                found += [decode.child(grouped, raw) for raw in await self._items(grouped, OURS)]
            except KubeError as error:
                if not error.unserved:
                    raise
                served = False
        self.groups, self._wanted_groups, self._workloads = served, wanted, _by_key(found)

    async def _read_events(self) -> None:
        """Ask for the Events of what should be there and is not: pods, and containers of pods that have a node."""
        lacking = {key: _maker(base) for key, base in self.bases.items() if self._lacks_pods(key, base)}
        waiting = {_about(base, pod) for base, pod in self._pods.objects.values() if pod.waits}
        if not lacking and not waiting and not self._warnings:
            return
        self._warnings = await warnings(self._kube, {*lacking.values(), *waiting})
        self.unmade = {key: self._warnings[maker] for key, maker in lacking.items() if maker in self._warnings}
        self._arrange()

    def _lacks_pods(self, key: str, base: ObservedBase) -> bool:
        """Whether an engine that should run has no pod."""
        workload, there = self._workloads.get(base.workload), {pod.name for pod in self.pods.get(key, ())}
        wanted = 0 if workload is None else workload.replicas
        return not all(engine_name(base.meta.name, ordinal) in there for ordinal in range(wanted))

    async def _read_children(self) -> dict[tuple[str, str, str], Child]:
        lists = await asyncio.gather(*[self._items(kind, OURS) for kind in self._kinds])
        found = [decode.child(kind, raw) for kind, raws in zip(self._kinds, lists, strict=True) for raw in raws]
        if self._secrets:
            namespaces = sorted({base.meta.namespace for base in self.bases.values()})
            secrets = await asyncio.gather(*[self._kube.get("Secret", each, REDIS_SECRET) for each in namespaces])
            found += [decode.child("Secret", raw) for raw in secrets if raw is not None]
        return _by_key(found)

    async def _items(self, kind: str, selector: str) -> list[msgspec.Raw]:
        lists = await asyncio.gather(*[self._kube.items(kind, each, selector) for each in self._namespaces])
        return [item for items in lists for item in items]


def _maker(base: ObservedBase) -> About:
    """What makes the pods of a base's engines: of several nodes, too, StatefulSets."""
    return About(WORKLOADS[0], base.meta.namespace, base.meta.name)


def _about(base: str, pod: EnginePod) -> About:
    return About("Pod", base.partition("/")[0], pod.name)


def _by_key(children: Iterable[Child]) -> dict[tuple[str, str, str], Child]:
    return {child.key: child for child in children}


def _base(raw: bytes | msgspec.Raw, before: ObservedBase | None) -> ObservedBase:
    base = decode.base_model(raw)
    if before is None or not _same_spec(base, before):
        return base
    return msgspec.structs.replace(base, spec=before.spec)  # the same object, so that its reader need not look


def _wave(raw: bytes | msgspec.Raw, before: ObservedWave | None) -> ObservedWave:
    wave = decode.adapter_wave(raw)
    if before is None or not _same_spec(wave, before):
        return wave
    return msgspec.structs.replace(wave, spec=before.spec)


def _same_spec(now: ObservedBase | ObservedWave, before: ObservedBase | ObservedWave) -> bool:
    """Whether both say the same. What stands in for a spec that cannot be read says nothing, whatever the generation:
    the API server leaves out what its resource definitions do not have, which may change under the object.
    """
    return now.meta.generation == before.meta.generation and not now.defect and not before.defect


def _pod(raw: bytes | msgspec.Raw, _before: object) -> tuple[str, EnginePod]:
    return decode.engine_pod(raw)
