"""What a wave asks for, adapter by adapter, and whether that may be had at all."""

from collections.abc import Iterable

import msgspec

from mint_contracts.errors import MintError
from mint_contracts.names import check_adapter
from mint_contracts.records import Tier
from mint_contracts.source import Source, child, locate
from mint_operator.planning import conditions
from mint_operator.planning.engines import engine_name
from mint_operator.planning.snapshot import ObservedBase, ObservedWave


class Refusal(msgspec.Struct, frozen=True):
    """Why a wave is not admitted. A terminal one needs a person; any other has a position in the queue, from 1."""

    reason: str
    message: str
    terminal: bool = True
    position: int = 0

    def at(self, position: int, length: int) -> "Refusal":
        """The same, at its place in a queue of that length."""
        said = f"{self.message}; position {position} of {length} in the queue"
        return msgspec.structs.replace(self, message=said, position=position)


class Want(msgspec.Struct, frozen=True, gc=False):
    """One adapter that admitted waves want: on `replicas` engines, in `residency` or warmer.

    `pins` are the only engines that may hold it; none: any may.
    """

    adapter: str
    source: Source
    residency: Tier
    replicas: int
    waves: tuple[str, ...]
    priority: int = 0
    pins: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """Device slots that its copies take."""
        return self.replicas if self.residency is Tier.DEVICE else 0


def resolve(wave: ObservedWave, base: ObservedBase) -> tuple[Want, ...] | Refusal:
    """Every adapter of a wave with its source, or why the wave as it is written cannot be served."""
    if wave.defect:
        return Refusal("InvalidRequest", wave.defect)
    spec = wave.spec
    try:
        named = _from_store(spec.adapters.names, base) if spec.adapters.names else _as_given(wave, base)
    except MintError as error:
        return Refusal(error.reason, str(error))
    if isinstance(named, Refusal):
        return named
    if not named:
        return Refusal("InvalidRequest", "names no adapter; set spec.adapters.names or spec.adapters.sources")
    twice = _twice(name for name, _ in named)
    if twice:
        return Refusal("InvalidRequest", f"names {', '.join(twice)} more than once; name each adapter once")
    residency, replicas, waves = Tier(spec.serve.residency), spec.serve.replicas, (wave.meta.key,)
    pins = tuple(engine_name(base.meta.name, ordinal) for ordinal in sorted(set(spec.serve.engines)))
    return tuple(Want(name, source, residency, replicas, waves, spec.priority, pins) for name, source in named)


def claims(base: ObservedBase) -> frozenset[str]:
    """The PersistentVolumeClaims that engines of a base mount. Raises SourceForbidden for a source of no use."""
    spec = base.spec
    sources = [spec.source.source] + ([spec.adapters.store.source] if spec.adapters.store else [])
    sources += [spec.training.store.source] if spec.training else []
    places = [locate(source) for source in sources]
    return frozenset(spec.adapters.volume_claims) | {place.host for place in places if place.scheme == "pvc"}


def _from_store(names: list[str], base: ObservedBase) -> list[tuple[str, Source]] | Refusal:
    store = base.spec.adapters.store
    if store is None:
        return Refusal(
            conditions.NO_ADAPTER_STORE,
            f"spec.adapters.names needs an adapter store, and BaseModel {base.meta.name} has none; "
            "set its spec.adapters.store.uri, or give spec.adapters.sources in the wave",
        )
    locate(store.source)
    root = store.source
    return [(check_adapter(name), child(root, name)) for name in names]


def _as_given(wave: ObservedWave, base: ObservedBase) -> list[tuple[str, Source]] | Refusal:
    mounted = claims(base)
    found = []
    for given in wave.spec.adapters.sources:
        source = Source(uri=given.uri, revision=given.revision)
        place = locate(source)
        if place.scheme == "pvc" and place.host not in mounted:
            return Refusal(
                conditions.CLAIM_NOT_MOUNTED,
                f"adapter {given.name} lies in claim {place.host}, which engines of {base.meta.name} do not mount; "
                "add it to spec.adapters.volumeClaims of the BaseModel (mounted now: "
                f"{', '.join(sorted(mounted)) or 'none'})",
            )
        found.append((check_adapter(given.name), source))
    return found


def _twice(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]
