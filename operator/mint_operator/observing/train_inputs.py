"""The inputs that training waves refer to: ConfigMaps that hold their examples, and manifests of policies."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog

from mint_contracts.backoff import Retry
from mint_contracts.records import Failure
from mint_contracts.resources import AdapterWaveSpec
from mint_operator.kube import Kube, KubeError
from mint_operator.observing.dirt import Part
from mint_operator.observing.train_manifest import Manifests
from mint_operator.planning.snapshot import Inputs, ObservedWave
from mint_operator.training.data import config_maps

_Name = tuple[str, str]  # of a ConfigMap: its namespace and name
_Text = dict[str, str] | Failure | None  # None: does not exist

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0

log = structlog.get_logger()


class _ConfigMap(msgspec.Struct, frozen=True):
    data: dict[str, str] = {}


class InputsView:
    """Reads what a wave names when the wave is first seen, and again at each resync to find what was missing.

    Failed reads are retried with growing delays, or at once for a new wave.
    """

    def __init__(self, kube: Kube, wake: Callable[[], None]) -> None:
        self._kube = kube
        self._manifests = Manifests(wake)
        self._waves: Sequence[ObservedWave] = ()
        self._specs: dict[str, AdapterWaveSpec] = {}  # by uid: the specs whose inputs were read last
        self._texts: dict[_Name, _Text] = {}
        self._retries: dict[_Name, Retry] = {}
        self._uris: dict[str, tuple[str, str]] = {}  # of manifests, each with its wave's namespace, by the wave's uid
        self.inputs = Inputs()
        self.changed = False  # the last look found something new

    async def refresh(self, parts: frozenset[Part], waves: Sequence[ObservedWave]) -> None:
        """Read what new waves name and what is due for a retry; read all else only at a resync.

        What cannot be read now stays as it was last known, except for a new wave, for which it may have been edited.
        """
        again = bool(parts & {Part.WAVES, Part.RELIST})
        if again or waves is not self._waves or self._due():
            await self._read(waves, again)
            self._waves = waves
        self._manifests.want(self._uris)
        inputs = Inputs(config_maps=_by_namespace(self._texts), manifests=dict(self._manifests.found))
        self.changed = inputs != self.inputs
        self.inputs = inputs

    async def _read(self, waves: Sequence[ObservedWave], again: bool) -> None:
        """Read the ConfigMaps that waves name; always those of a new wave, since they may have been edited for it."""
        specs: dict[str, AdapterWaveSpec] = {}
        named: set[_Name] = set()
        new: set[_Name] = set()
        uris: dict[str, tuple[str, str]] = {}
        for wave in waves:
            train = wave.spec.train
            if train is None:
                continue
            specs[wave.meta.uid] = wave.spec
            of = {(wave.meta.namespace, name) for name in config_maps(train)}
            named |= of
            if self._specs.get(wave.meta.uid) is not wave.spec:
                new |= of
            if train.policies.manifest:
                uris[wave.meta.uid] = (wave.meta.namespace, train.policies.manifest)
        wanted = named - self._retries.keys() if again else set[_Name]()
        reading = sorted(new | wanted | self._due() & named)
        known = {name: text for name, text in self._texts.items() if name not in new}
        texts = await asyncio.gather(*[self._config_map(name, known) for name in reading])
        kept = {name: self._texts[name] for name in named.difference(reading)}
        self._texts = kept | dict(zip(reading, texts, strict=True))
        self._retries = {name: retry for name, retry in self._retries.items() if name in named}
        self._specs, self._uris = specs, uris

    def _due(self) -> set[_Name]:
        return {name for name, retry in self._retries.items() if retry.due}

    async def _config_map(self, key: _Name, known: Mapping[_Name, _Text]) -> _Text:
        namespace, name = key
        try:
            raw = await self._kube.get("ConfigMap", namespace, name)
        except KubeError as error:
            log.warning("config map not read", kind="ConfigMap", namespace=namespace, name=name, error=str(error))
            self._retries[key] = Retry.after(self._retries.get(key), first_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S)
            unknown = Failure("SourceUnavailable", f"could not be read ({error}); retrying", terminal=False)
            return known.get(key, unknown)
        self._retries.pop(key, None)
        return None if raw is None else msgspec.json.decode(raw, type=_ConfigMap).data


def _by_namespace(texts: Mapping[_Name, _Text]) -> dict[str, dict[str, dict[str, str] | Failure]]:
    found: dict[str, dict[str, dict[str, str] | Failure]] = {}
    for (namespace, name), text in texts.items():
        if text is not None:
            found.setdefault(namespace, {})[name] = text
    return found
