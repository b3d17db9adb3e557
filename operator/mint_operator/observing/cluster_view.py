"""The Kubernetes half of observation: lists of our objects, read again only for the parts that are dirty."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from mint_operator.kube import Kube, namespaced
from mint_operator.observing import decode
from mint_operator.observing.dirt import Part
from mint_operator.observing.feed import Feed
from mint_operator.observing.store import Store
from mint_operator.planning.manifests import MANAGED_BY, MANAGER, REDIS_SECRET
from mint_operator.planning.snapshot import Child, EnginePod, ObservedBase, ObservedWave

OURS = f"{MANAGED_BY}={MANAGER}"
_CHILDREN = ("Service", "ServiceAccount", "PodDisruptionBudget")


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
        self.bases: dict[str, ObservedBase] = {}
        self.waves: tuple[ObservedWave, ...] = ()
        self.pods: dict[str, tuple[EnginePod, ...]] = {}
        self._statefulsets: dict[tuple[str, str, str], Child] = {}
        self._children: dict[tuple[str, str, str], Child] = {}

    @property
    def children(self) -> dict[tuple[str, str, str], Child]:
        """Every object that the operator made."""
        return self._statefulsets | self._children

    async def refresh(self, parts: frozenset[Part]) -> bool:
        """List the dirty parts again, and take in what the watch has seen. Returns whether anything may be new.

        A part is replaced whole, and only if all of it could be read.
        """
        news = self._feed.take()  # before listing: what a listing misses comes after this
        changed = bool(parts - {Part.MAP})
        stores: dict[str, Store[Any]] = {"BaseModel": self._bases, "AdapterWave": self._waves, "Pod": self._pods}
        for each in news:
            changed |= stores[each.kind].take(each)
        listed = {Part.BASES: "BaseModel", Part.WAVES: "AdapterWave", Part.PODS: "Pod"}
        lists = {
            kind: self._items(kind, OURS if kind == "Pod" else "") for part, kind in listed.items() if part in parts
        }
        found = await asyncio.gather(*lists.values())
        for kind, raws in zip(lists, found, strict=True):
            stores[kind].replace(raws)
        if changed or news:
            self._arrange()
        if Part.STATEFULSETS in parts:
            await self._read_statefulsets()
        if Part.CHILDREN in parts:  # after the bases, whose namespaces it asks for
            self._children = await self._read_children()
        return changed

    def _arrange(self) -> None:
        self.bases = {base.meta.key: base for base in self._bases.objects.values()}
        self.waves = tuple(self._waves.objects.values())
        pods: dict[str, list[EnginePod]] = defaultdict(list)
        for base, pod in self._pods.objects.values():
            pods[base].append(pod)
        self.pods = {base: tuple(each) for base, each in pods.items()}

    async def _read_statefulsets(self) -> None:
        raws = await self._items("StatefulSet", OURS)
        self._statefulsets = _by_key(decode.child("StatefulSet", raw) for raw in raws)

    async def _read_children(self) -> dict[tuple[str, str, str], Child]:
        lists = await asyncio.gather(*[self._items(kind, OURS) for kind in self._kinds])
        found = [decode.child(kind, raw) for kind, raws in zip(self._kinds, lists, strict=True) for raw in raws]
        if self._secrets:
            namespaces = sorted({base.meta.namespace for base in self.bases.values()})
            secrets = await asyncio.gather(*[self._kube.get("Secret", each, REDIS_SECRET) for each in namespaces])
            found += [decode.child("Secret", raw) for raw in secrets if raw is not None]
        return _by_key(found)

    async def _items(self, kind: str, selector: str = "") -> list[msgspec.Raw]:
        lists = await asyncio.gather(*[self._kube.items(kind, each, selector) for each in self._namespaces])
        return [item for items in lists for item in items]


def _by_key(children: Iterable[Child]) -> dict[tuple[str, str, str], Child]:
    return {child.key: child for child in children}


def _base(raw: bytes | msgspec.Raw, before: ObservedBase | None) -> ObservedBase:
    base = decode.base_model(raw)
    if before is None or before.meta.generation != base.meta.generation:
        return base
    return msgspec.structs.replace(base, spec=before.spec)  # the same object, so that its reader need not look


def _wave(raw: bytes | msgspec.Raw, before: ObservedWave | None) -> ObservedWave:
    wave = decode.adapter_wave(raw)
    if before is None or before.meta.generation != wave.meta.generation:
        return wave
    return msgspec.structs.replace(wave, spec=before.spec)


def _pod(raw: bytes | msgspec.Raw, _before: object) -> tuple[str, EnginePod]:
    return decode.engine_pod(raw)
