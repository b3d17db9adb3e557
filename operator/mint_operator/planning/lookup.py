"""What must be looked up before a wave's adapters are known: in the base's catalog, or in a manifest. Pure."""

import msgspec

from mint_contracts.source import Source
from mint_operator.planning.snapshot import ObservedBase, ObservedWave

MOST_ADAPTERS = 4096  # of one wave, as in the CRD


class Lookup(msgspec.Struct, frozen=True):
    """A question: for names, for catalog entries by prefix and labels, or for a manifest; exactly one of these.

    Waves that ask the same share the answer; for a manifest only those of one namespace, as namespaces share the
    threads that read. A name resolves to its entry in the catalog; if that lacks it and the name has no revision, to
    the folder of that name in the `store`, if there is one.
    """

    base: str
    names: tuple[str, ...] = ()
    prefix: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    manifest: str = ""
    namespace: str = ""  # of the waves that name the manifest
    store: Source | None = None
    catalog: bool = True


def may_use_base(wave: ObservedWave, base: ObservedBase) -> bool:
    """Whether a wave may use a base, which serves its own namespace and its tenants' namespaces."""
    namespace = wave.meta.namespace
    return namespace == base.meta.namespace or any(tenant.namespace == namespace for tenant in base.spec.tenants)


def lookup(wave: ObservedWave, base: ObservedBase) -> Lookup | None:
    """Return what a wave needs looked up; None if its spec says everything, or nothing can be looked up."""
    given, has_catalog = wave.spec.adapters, base.spec.catalog is not None
    if wave.spec.train is not None or wave.defect or not may_use_base(wave, base):
        return None
    store = base.spec.adapters.store.source if base.spec.adapters.store else None
    if given.manifest:
        own = wave.meta.namespace
        return Lookup(base.meta.key, manifest=given.manifest, namespace=own, store=store, catalog=has_catalog)
    if not has_catalog:
        return None
    if given.selector is not None:
        labels = tuple(sorted(given.selector.labels.items()))
        return Lookup(base=base.meta.key, prefix=given.selector.prefix, labels=labels)
    return Lookup(base=base.meta.key, names=tuple(given.names), store=store) if given.names else None
