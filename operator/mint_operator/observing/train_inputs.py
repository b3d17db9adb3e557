"""What training waves name beside themselves: ConfigMaps that hold their examples, and manifests of policies."""

import asyncio
from collections.abc import Sequence

import msgspec
import structlog

from mint_operator.kube import Kube, KubeError
from mint_operator.observing.dirt import Part
from mint_operator.observing.train_manifest import Manifests
from mint_operator.planning.snapshot import Inputs, ObservedWave
from mint_operator.training.data import config_maps

log = structlog.get_logger()


class _ConfigMap(msgspec.Struct, frozen=True):
    data: dict[str, str] = {}


class InputsView:
    """Reads what waves name when waves were looked at, at each resync too, so that what was missing is found."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._manifests = Manifests()
        self.inputs = Inputs()

    async def refresh(self, parts: frozenset[Part], waves: Sequence[ObservedWave]) -> None:
        """Read again, if waves may name something new. One that cannot be read now stays as it was."""
        if not parts & {Part.WAVES, Part.WHOLE}:
            return
        named = sorted(
            {
                (wave.meta.namespace, name)
                for wave in waves
                if wave.spec.train is not None
                for name in config_maps(wave.spec.train)
            }
        )
        texts = await asyncio.gather(*[self._config_map(namespace, name) for namespace, name in named])
        found: dict[str, dict[str, dict[str, str]]] = {}
        for (namespace, name), text in zip(named, texts, strict=True):
            if text is not None:
                found.setdefault(namespace, {})[name] = text
        trains = [wave.spec.train for wave in waves if wave.spec.train is not None]
        self._manifests.want(train.policies.manifest for train in trains if train.policies.manifest)
        self.inputs = Inputs(config_maps=found, manifests=dict(self._manifests.found))

    async def _config_map(self, namespace: str, name: str) -> dict[str, str] | None:
        try:
            raw = await self._kube.get("ConfigMap", namespace, name)
        except KubeError as error:
            log.warning("config map not read", namespace=namespace, name=name, error=str(error))
            before = self.inputs.config_maps.get(namespace, {}).get(name)
            return None if before is None else dict(before)
        return None if raw is None else msgspec.json.decode(raw, type=_ConfigMap).data
