"""The Kubernetes half of observation: lists of our objects, read again only for the parts that are dirty."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from mint_operator import decode
from mint_operator.dirt import Part
from mint_operator.kube import Kube, namespaced
from mint_operator.manifests import MANAGED_BY, MANAGER, REDIS_SECRET
from mint_operator.snapshot import Child, EnginePod, ObservedBase, ObservedWave

OURS = f"{MANAGED_BY}={MANAGER}"
_CHILDREN = ("Service", "ServiceAccount", "PodDisruptionBudget")


class ClusterView:
    """What the API server says, as of each part's last listing."""

    def __init__(self, kube: Kube, namespaces: Sequence[str], *, secrets: bool, policies: bool) -> None:
        self._kube = kube
        self._namespaces = namespaced(namespaces)
        self._secrets = secrets  # whether engines need a Secret for Redis
        self._kinds = (*_CHILDREN, "NetworkPolicy") if policies else _CHILDREN
        self.bases: dict[str, ObservedBase] = {}
        self.waves: tuple[ObservedWave, ...] = ()
        self.pods: dict[str, tuple[EnginePod, ...]] = {}
        self._statefulsets: dict[tuple[str, str, str], Child] = {}
        self._children: dict[tuple[str, str, str], Child] = {}

    @property
    def children(self) -> dict[tuple[str, str, str], Child]:
        """Every object that the operator made."""
        return self._statefulsets | self._children

    async def refresh(self, parts: frozenset[Part]) -> None:
        """List the dirty parts again. A part is replaced whole, and only if all of it could be read."""
        work = {
            Part.BASES: self._read_bases,
            Part.WAVES: self._read_waves,
            Part.PODS: self._read_pods,
            Part.STATEFULSETS: self._read_statefulsets,
        }
        await asyncio.gather(*[read() for part, read in work.items() if part in parts])
        if Part.CHILDREN in parts:  # after the bases, whose namespaces it asks for
            self._children = await self._read_children()

    async def _read_bases(self) -> None:
        found = [decode.base_model(raw) for raw in await self._items("BaseModel")]
        self.bases = {base.meta.key: base for base in found}

    async def _read_waves(self) -> None:
        self.waves = tuple([decode.adapter_wave(raw) for raw in await self._items("AdapterWave")])

    async def _read_pods(self) -> None:
        found: dict[str, list[EnginePod]] = defaultdict(list)
        for raw in await self._items("Pod", OURS):
            base, pod = decode.engine_pod(raw)
            found[base].append(pod)
        self.pods = {base: tuple(pods) for base, pods in found.items()}

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
