"""What a wave asks for, adapter by adapter, and whether that can be served at all."""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from mint_contracts.errors import MintError
from mint_contracts.hub import place_of
from mint_contracts.names import check_adapter, check_asked
from mint_contracts.records import Mentions, Tier
from mint_contracts.resources import AdapterWaveSpec, Selector
from mint_contracts.source import Source, child, locate
from mint_operator.planning import conditions
from mint_operator.planning.engines import engine_name
from mint_operator.planning.podspec import claims
from mint_operator.planning.refusal import ANY_ADAPTERS, NO_NAMES, Refusal
from mint_operator.planning.snapshot import Listed, ObservedBase, ObservedWave

MOST_NAMED = 10

Named = Sequence[tuple[str, Source]]


class Want(msgspec.Struct, frozen=True, gc=False):
    """One adapter that admitted waves want: on `replicas` engines, in `residency` or warmer.

    `pins` are the only engines that may hold it; empty: any may. `at_home`: the pins are only a preference, which
    ends when another wave wants the adapter. `source_from` are waves whose source takes precedence: a wave whose spec
    cannot be read keeps the copies that it shares with them, but does not decide their source.
    """

    adapter: str
    source: Source
    residency: Tier
    replicas: int
    waves: tuple[str, ...]
    priority: int
    pins: tuple[str, ...]
    at_home: bool = False
    source_from: tuple[str, ...] = ()


def resolve(wave: ObservedWave, base: ObservedBase) -> tuple[Want, ...] | Refusal:
    """Return every adapter of a wave with its source, or why the wave cannot be served as it is written."""
    if wave.defect and not wave.listed:
        return Refusal("InvalidRequest", unreadable(wave), mentions=ANY_ADAPTERS)
    spec = wave.spec
    try:
        named = _named(wave, base)
    except MintError as error:
        return Refusal.of(error)
    if isinstance(named, Refusal):
        return named
    if len({name for name, _ in named}) < len(named):
        twice = tuple(_twice(named)[:MOST_NAMED])
        message = f"names {', '.join(twice)} more than once; name each adapter once"
        return Refusal("InvalidRequest", message, mentions=Mentions(twice))
    residency, replicas, waves = Tier(spec.serve.residency), spec.serve.replicas, (wave.meta.key,)
    allowed, shared_with = pins(spec), wave.shared_with
    return tuple(
        Want(name, source, residency, replicas, waves, spec.priority, allowed, source_from=shared_with.get(name, ()))
        for name, source in named
    )


def pins(spec: AdapterWaveSpec) -> tuple[str, ...]:
    """Return the only engines that may hold what a wave serves or has trained; empty: any may."""
    base = spec.base_model_ref.name
    return tuple(engine_name(base, ordinal) for ordinal in sorted(set(spec.serve.engines)))


def asked(wave: ObservedWave) -> int:
    """Return how many adapters a wave asks for, by its spec or by what its selector or manifest has found."""
    given = wave.spec.adapters
    return len(given.names) or len(given.sources) or len(wave.listed or ())


def shown_name(wave: str, other: str) -> str:
    """Return what a wave's messages call another wave; tenants learn nothing about each other's waves."""
    return f"wave {other}" if of_one_namespace(wave, other) else "a wave of another namespace"


def shown_waves(wave: str, other: str) -> tuple[str, ...]:
    """Return the waves that `shown_name` names."""
    return (other,) if of_one_namespace(wave, other) else ()


def of_one_namespace(key: str, other: str) -> bool:
    """Whether two objects, given by their keys, are in one namespace."""
    return key.partition("/")[0] == other.partition("/")[0]


def unreadable(wave: ObservedWave) -> str:
    """Say what could not be read in a wave's spec, and what to do."""
    return (
        f"this version of MinT cannot read the wave's spec: {wave.defect}; correct the spec, or install the version "
        "of MinT that it was written for"
    )


def _named(wave: ObservedWave, base: ObservedBase) -> Named | Refusal:
    given = wave.spec.adapters
    if wave.defect:
        return [(each.name, each.source) for each in wave.listed or ()]
    if given.names:
        return _by_name(wave, base)
    if given.sources:
        return _as_given(wave, base)
    if given.selector is None and not given.manifest:
        message = "selects no adapters; set spec.adapters.names, sources, selector or manifest"
        return Refusal("InvalidRequest", message, mentions=NO_NAMES)
    if given.selector is not None and base.spec.catalog is None:
        return _without_catalog("spec.adapters.selector", base, NO_NAMES)
    if wave.listed is None or (given.manifest and not wave.listed):
        return unread(wave)
    return _mounted(wave.listed, base) if wave.listed else _nothing(wave, base)


def _by_name(wave: ObservedWave, base: ObservedBase) -> Named | Refusal:
    """Resolve names: in the catalog and then the store if there is a catalog, else in the store.

    Names that resolve to nothing now, or were not looked up yet while others are served, are left out.
    """
    names, store, has_catalog = wave.spec.adapters.names, base.spec.adapters.store, base.spec.catalog is not None
    pinned = next((name for name in names if "@" in name), None)
    if pinned is not None and not has_catalog:
        return _without_catalog(f"adapter {pinned} names a revision, which", base, Mentions((pinned,)))
    if store is None and not has_catalog:
        return Refusal(
            conditions.NO_ADAPTER_STORE,
            f"spec.adapters.names needs an adapter store or a catalog, but BaseModel {base.meta.name} has neither; "
            "set its spec.adapters.store.uri, or use spec.adapters.sources in the wave",
            mentions=NO_NAMES,
        )
    if store is not None:
        locate(store.source)
        if not has_catalog:
            return [(check_asked(name), child(store.source, name)) for name in names]
    listed = _mounted(wave.listed or (), base)
    if isinstance(listed, Refusal):
        return listed
    sources = dict(listed)
    return [(check_asked(name), sources[name]) for name in names if name in sources] or unread(wave)


def _without_catalog(what: str, base: ObservedBase, mentions: Mentions) -> Refusal:
    return Refusal(
        conditions.NO_CATALOG,
        f"{what} needs a catalog, but BaseModel {base.meta.name} has none; set its spec.catalog.manifests.uri",
        mentions=mentions,
    )


def unread(wave: ObservedWave) -> Refusal:
    """Return why it is not known which adapters a wave asks for."""
    if wave.unread is not None:
        return wave.unread
    message = "its adapters have not been looked up yet"
    return Refusal(conditions.CATALOG_UNREAD, message, terminal=False, mentions=NO_NAMES)


def _nothing(wave: ObservedWave, base: ObservedBase) -> Refusal:
    selector = wave.spec.adapters.selector or Selector()
    labels = [f"{key}={value}" for key, value in sorted(selector.labels.items())]
    asked = " and ".join([f"prefix {selector.prefix}"] * bool(selector.prefix) + [f"label {each}" for each in labels])
    message = (
        f"no adapter in the catalog of BaseModel {base.meta.name} has {asked}; register some, or change the selector"
    )
    mentions = Mentions((selector.prefix,)) if selector.prefix else NO_NAMES
    return Refusal(conditions.NO_MATCH, message, terminal=False, mentions=mentions)


def _as_given(wave: ObservedWave, base: ObservedBase) -> Named | Refusal:
    given = wave.spec.adapters.sources
    return _mounted(
        [Listed(check_adapter(each.name), Source(each.uri, each.revision)) for each in given], base, check=True
    )


def _mounted(listed: Iterable[Listed], base: ObservedBase, *, check: bool = False) -> Named | Refusal:
    """Return the adapters, or a refusal if engines do not mount one's claim; `check` all URIs, not only claims'."""
    mounted = claims(base)
    found = []
    for each in listed:
        if check or each.source.uri.startswith("pvc:"):
            place = locate(each.source)
            if place.scheme == "hf":
                place_of(place, f"source {each.source.uri!r}")
            if place.scheme == "pvc" and place.host not in mounted:
                names = ", ".join(sorted(mounted)) or "none"
                return Refusal(
                    conditions.CLAIM_NOT_MOUNTED,
                    f"adapter {each.name} is in claim {place.host}, which engines of {base.meta.name} do not "
                    f"mount; add it to spec.adapters.volumeClaims of the BaseModel (mounted now: {names})",
                    mentions=Mentions((each.name,)),
                )
        found.append((each.name, each.source))
    return found


def _twice(named: Named) -> list[str]:
    return sorted(name for name, count in Counter(name for name, _ in named).items() if count > 1)
