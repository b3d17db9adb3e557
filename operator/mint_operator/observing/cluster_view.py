"""The Kubernetes half of observation: lists of our objects, read again only for the parts that are dirty.

The resync lists objects in the background, so that nobody who has changed an object waits for it.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import structlog

from mint_contracts.records import Failure
from mint_operator.kube import Kube, KubeError, namespaced
from mint_operator.observing import decode
from mint_operator.observing.dirt import Part
from mint_operator.observing.feed import Feed
from mint_operator.observing.kube_events import About, warnings
from mint_operator.observing.new_fields import Schema
from mint_operator.observing.store import Store
from mint_operator.observing.written import Written
from mint_operator.planning.engines import engine_name
from mint_operator.planning.groups import WORKLOADS, leader_of
from mint_operator.planning.manifests import MANAGED_BY, MANAGER
from mint_operator.planning.podspec import REDIS_SECRET
from mint_operator.planning.snapshot import Child, EnginePod, ObservedBase, ObservedWave

OURS = f"{MANAGED_BY}={MANAGER}"
LISTING_SHARE = 0.1  # of the time, at most, is spent on lists that only look for what the watch has missed
LEARN_S = 60.0
_OURS = ("BaseModel", "AdapterWave")
_LISTED = {Part.BASES: "BaseModel", Part.WAVES: "AdapterWave", Part.PODS: "Pod"}
_CHILDREN = ("Service", "ServiceAccount", "PodDisruptionBudget")

R = TypeVar("R", ObservedBase, ObservedWave)
log = structlog.get_logger()

_Stores = Mapping[str, Store[Any]]
_Lists = Mapping[str, list[msgspec.Raw]]


class ClusterView:
    """The state in the API server: each part's last listing, updated by what the watch has seen since."""

    def __init__(
        self, kube: Kube, namespaces: Sequence[str], feed: Feed, written: Written, *, secrets: bool, policies: bool
    ) -> None:
        self._kube = kube
        self._written = written
        self._namespaces = namespaced(namespaces)
        self._feed = feed
        self._secrets = secrets  # whether engines need a Secret for Redis
        self._kinds = (*_CHILDREN, "NetworkPolicy") if policies else _CHILDREN
        self._bases = Store(self._base, _unread)
        self._waves = Store(self._wave, _unread)
        self._pods = Store(_pod)
        self._stores: _Stores = {"BaseModel": self._bases, "AdapterWave": self._waves, "Pod": self._pods}
        self._listing: asyncio.Task[_Lists] | None = None
        self._schemas: Mapping[str, Schema] = {}  # of specs, by kind; read only where one cannot be read
        self._learn_at = 0.0
        self._list_at = 0.0  # earliest time of the next background listing, by the loop's clock
        self._unarranged = False  # the stores have news that the attributes below do not show yet
        self.bases: dict[str, ObservedBase] = {}
        self.waves: tuple[ObservedWave, ...] = ()
        self.pods: dict[str, tuple[EnginePod, ...]] = {}
        self.unmade: Mapping[str, Failure] = {}  # by base: why pods of its engines cannot be made
        self._warnings: Mapping[About, Failure] = {}  # troubles that only Events report
        self.groups = True  # whether the API server has LeaderWorkerSets; looked up only if a base wants one
        self._wanted_groups = False
        self._workloads: dict[tuple[str, str, str], Child] = {}
        self._children: dict[tuple[str, str, str], Child] = {}
        self.clock: Callable[[], float] = time.time  # seconds since 1970

    @property
    def children(self) -> dict[tuple[str, str, str], Child]:
        """Every object that the operator has made."""
        return self._workloads | self._children

    async def refresh(self, parts: frozenset[Part]) -> bool:
        """List the dirty parts again and apply what the watch has seen. Returns whether anything may be new.

        A part is replaced as a unit, and only if all of it could be read.
        """
        news = self._feed.take()  # before listing: what a listing misses arrives after this
        changed = bool(parts - {Part.MAP, Part.RELIST})
        for each in news:
            changed |= self._stores[each.kind].take(each)
        self._unarranged |= changed or bool(news)  # kept until done, even if lists fail before
        dirty = [kind for part, kind in _LISTED.items() if part in parts]
        if dirty:
            self._end_listing()
            self._replace(await self._lists(dirty))
        elif self._listing is not None and self._listing.done():
            self._replace(self._end_listing() or {})
            changed = self._unarranged = True
        if Part.RELIST in parts and self._listing is None and asyncio.get_running_loop().time() >= self._list_at:
            self._listing = asyncio.create_task(self._lists(list(_LISTED.values())))
        if self._unarranged:
            self._arrange()
            self._unarranged = False
        if await self._learn():
            self._end_listing()
            self._replace(await self._lists(_OURS))
            self._arrange()
            changed = True
        if Part.WORKLOADS in parts or self._wants_groups() > self._wanted_groups:
            await self._read_workloads()
            await self._read_events()
        if Part.CHILDREN in parts:  # after the bases, whose namespaces it reads
            self._children = await self._read_children()
        return changed

    async def _learn(self) -> bool:
        """Learn what the CRDs define, now and then while objects cannot be read; return whether that is new."""
        now = asyncio.get_running_loop().time()
        if now < self._learn_at or not (any(map(_unread, self.bases.values())) or any(map(_unread, self.waves))):
            return False
        self._learn_at = now + LEARN_S
        try:
            before, self._schemas = self._schemas, await self._kube.schemas()
        except KubeError as error:
            log.warning("schemas of the CRDs not read", error=str(error))
            return False
        return self._schemas != before

    def _base(self, raw: bytes | msgspec.Raw, before: ObservedBase | None) -> ObservedBase:
        return _with_same_spec(decode.base_model(raw, self._schemas.get("BaseModel", {})), before)

    def _wave(self, raw: bytes | msgspec.Raw, before: ObservedWave | None) -> ObservedWave:
        return _with_same_spec(decode.adapter_wave(raw, self._schemas.get("AdapterWave", {})), before)

    def _lists(self, kinds: Sequence[str]) -> Coroutine[Any, Any, _Lists]:
        """Begin to list these kinds; sightings from now on are kept along with the result."""
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
        """Return the result of the background listing, or cancel it if it still runs. Raises KubeError."""
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
        pods, now = defaultdict[str, list[EnginePod]](list), self.clock()
        for base, pod in self._pods.objects.values():
            trouble = decode.overdue(pod, now) or (self._warnings.get(_about(base, pod)) if pod.waits else None)
            pods[base].append(pod if trouble is None else msgspec.structs.replace(pod, trouble=trouble))
        for key, worker, maker in self._missing_workers():
            if trouble := self._warnings.get(maker):
                pods[key].append(EnginePod(name=worker, trouble=trouble))
        self.pods = {base: tuple(each) for base, each in pods.items()}

    def _wants_groups(self) -> bool:
        return any(base.spec.engine.nodes > 1 for base in self.bases.values())

    async def _read_workloads(self) -> None:
        single, grouped = WORKLOADS
        found = [self._child(single, raw) for raw in await self._items(single, OURS)]
        served, wanted = True, self._wants_groups()
        if wanted:
            try:
                found += [self._child(grouped, raw) for raw in await self._items(grouped, OURS)]
            except KubeError as error:
                if not error.unserved:
                    raise
                served = False
        self.groups, self._wanted_groups, self._workloads = served, wanted, _by_key(found)

    async def _read_events(self) -> None:
        """Read the Events about missing pods, and about pods that have a node but no containers yet."""
        lacking = {key: _maker(base) for key, base in self.bases.items() if self._lacks_pods(key, base)}
        waiting = {_about(base, pod) for base, pod in self._pods.objects.values() if pod.waits}
        waiting |= {maker for _, _, maker in self._missing_workers()}
        if not lacking and not waiting and not self._warnings:
            return
        self._warnings = await warnings(self._kube, {*lacking.values(), *waiting})
        self.unmade = {key: self._warnings[maker] for key, maker in lacking.items() if maker in self._warnings}
        self._arrange()

    def _missing_workers(self) -> list[tuple[str, str, About]]:
        """Return the first worker that each leader lacks: its base, its name, and the object that creates it."""
        there = {(base, pod.name) for base, pod in self._pods.objects.values()}
        found = []
        for base, leader in sorted(there):
            of = self.bases.get(base)
            if of is None or leader_of(leader) != of.meta.name:
                continue
            names = (f"{leader}-{index}" for index in range(1, of.spec.engine.nodes))
            missing = [name for name in names if (base, name) not in there]
            if missing:
                found.append((base, missing[0], About(WORKLOADS[0], of.meta.namespace, leader)))
        return found

    def _lacks_pods(self, key: str, base: ObservedBase) -> bool:
        """Whether an engine that should run has no pod."""
        workload, there = self._workloads.get(base.workload), {pod.name for pod in self.pods.get(key, ())}
        wanted = 0 if workload is None else workload.replicas
        return not all(engine_name(base.meta.name, ordinal) in there for ordinal in range(wanted))

    async def _read_children(self) -> dict[tuple[str, str, str], Child]:
        lists = await asyncio.gather(*[self._items(kind, OURS) for kind in self._kinds])
        found = [self._child(kind, raw) for kind, raws in zip(self._kinds, lists, strict=True) for raw in raws]
        if self._secrets:
            namespaces = sorted({base.meta.namespace for base in self.bases.values()})
            secrets = await asyncio.gather(*[self._kube.get("Secret", each, REDIS_SECRET) for each in namespaces])
            found += [self._child("Secret", raw) for raw in secrets if raw is not None]
        self._written.keep({child.key for child in found} | self._workloads.keys())
        return _by_key(found)

    def _child(self, kind: str, raw: bytes | msgspec.Raw) -> Child:
        found = decode.child(kind, raw)
        edited = self._written.edited(found.key, decode.fingerprint(raw))
        return msgspec.structs.replace(found, edited=True) if edited else found

    async def _items(self, kind: str, selector: str) -> list[msgspec.Raw]:
        lists = await asyncio.gather(*[self._kube.items(kind, each, selector) for each in self._namespaces])
        return [item for items in lists for item in items]


def _maker(base: ObservedBase) -> About:
    """Return the object that creates the pods of a base's engines: a StatefulSet, also for several nodes."""
    return About(WORKLOADS[0], base.meta.namespace, base.meta.name)


def _about(base: str, pod: EnginePod) -> About:
    return About("Pod", base.partition("/")[0], pod.name, pod.uid)


def _by_key(children: Iterable[Child]) -> dict[tuple[str, str, str], Child]:
    return {child.key: child for child in children}


def _unread(of: ObservedBase | ObservedWave) -> bool:
    return bool(of.defect)


def _with_same_spec(now: R, before: R | None) -> R:
    """Return the resource with its earlier spec if that is equal, so that readers can compare by identity.

    A placeholder for an unreadable spec never counts as equal. The generation does not tell: the API server drops
    fields that its CRDs lack, and CRDs may change without a new generation of the object; after a restore from a
    backup it gives the same generations again.
    """
    if before is None or now.spec != before.spec or now.defect or before.defect:
        return now
    return msgspec.structs.replace(now, spec=before.spec)


def _pod(raw: bytes | msgspec.Raw, _before: object) -> tuple[str, EnginePod]:
    return decode.engine_pod(raw)
