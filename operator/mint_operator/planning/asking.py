"""What all waves of a base ask for: each wave resolved once, and which adapters several of them share.

If only some waves changed, it is derived from the last result, and is the same as from scratch.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from mint_contracts.records import Tier
from mint_contracts.resources import AdapterWaveSpec, BaseModelSpec
from mint_operator.planning.adapters import Want, resolve
from mint_operator.planning.refusal import Refusal
from mint_operator.planning.shards import Shards
from mint_operator.planning.snapshot import ObservedBase, ObservedWave
from mint_operator.training.wants import training_wants

_DEVICE = Tier.DEVICE  # looking up an enum's member is slower than anything else done with a want


class Ask(msgspec.Struct, frozen=True):
    """One wave's wants, or why it cannot be served as it is written, and the specs that these came from."""

    wave: ObservedWave
    base: BaseModelSpec
    wants: tuple[Want, ...]
    by_name: Mapping[str, Want]
    refusal: Refusal | None
    slots: int  # for this wave alone
    replicas: int
    copies: int = 0

    @property
    def spec(self) -> AdapterWaveSpec:
        """The wave's own spec."""
        return self.wave.spec

    @property
    def kept(self) -> bool:
        """Whether the wave keeps what it has because its spec cannot be read."""
        return bool(self.wave.defect) and self.refusal is None


class Asks(msgspec.Struct, frozen=True):
    """All waves' asks. `owners`: adapter -> one wave that asks for it. `shared`: adapter -> all, if several do."""

    by_wave: Mapping[str, Ask]
    owners: Shards[str]
    shared: Mapping[str, tuple[str, ...]]

    def of(self, wave: str, adapter: str) -> Want:
        """Return one wave's want for an adapter that it names."""
        return self.by_wave[wave].by_name[adapter]


NOBODY = Asks(by_wave={}, owners=Shards(), shared={})


def ask(base: ObservedBase, waves: Sequence[ObservedWave], before: Asks) -> Asks:
    """Return everything asked for now."""
    by_wave: dict[str, Ask] = {}
    old: list[Ask] = []
    new: list[Ask] = []
    for wave in waves:
        key = wave.meta.key
        last = before.by_wave.get(key)
        if last is not None and last.wave is wave and last.base is base.spec:
            by_wave[key] = last
            continue
        now = by_wave[key] = _ask(base, wave, last)
        if last is None or last.wants is not now.wants:
            new.append(now)
            old += [last] if last is not None else []
    old += [each for key, each in before.by_wave.items() if key not in by_wave]
    if not old and not new:
        return msgspec.structs.replace(before, by_wave=by_wave)
    if before is NOBODY:
        everyone, several = dict[str, str](), dict[str, tuple[str, ...]]()
        _enter(everyone, several, new)
        return Asks(by_wave=by_wave, owners=Shards(everyone), shared=several)
    names = {want.adapter for each in (*old, *new) for want in each.wants}
    owners = {name: before.owners[name] for name in names if name in before.owners}
    shared = dict(before.shared)
    _forget(owners, shared, old)
    _enter(owners, shared, new)
    return Asks(by_wave=by_wave, owners=before.owners.changed(owners, names - owners.keys()), shared=shared)


def _ask(base: ObservedBase, wave: ObservedWave, before: Ask | None) -> Ask:
    same = before is not None and before.spec is wave.spec and before.base is base.spec
    if before is not None and same and before.wave.standing == wave.standing and _as_looked_up(before, wave):
        return before if before.wave is wave else msgspec.structs.replace(before, wave=wave)
    found = resolve(wave, base) if wave.spec.train is None else training_wants(wave)
    if isinstance(found, Refusal):
        return Ask(wave=wave, base=base.spec, wants=(), by_name={}, refusal=found, slots=0, replicas=0)
    return Ask(
        wave=wave,
        base=base.spec,
        wants=found,
        by_name={want.adapter: want for want in found},
        refusal=None,
        slots=sum([want.replicas for want in found if want.residency is _DEVICE]),
        replicas=wave.spec.serve.replicas,
        copies=sum([want.replicas for want in found]),
    )


def _as_looked_up(before: Ask, wave: ObservedWave) -> bool:
    """Whether what was looked up is the same object and, if the wave was refused, the reason is the same, too."""
    old = before.wave
    return old.listed is wave.listed and (before.refusal is None or old.unread == wave.unread)


def _forget(owners: dict[str, str], shared: dict[str, tuple[str, ...]], asks: Iterable[Ask]) -> None:
    for each in asks:
        key = each.wave.meta.key
        for want in each.wants:
            rest = tuple(other for other in shared.pop(want.adapter, ()) if other != key)
            if rest:
                owners[want.adapter] = rest[0]
            else:
                del owners[want.adapter]
            if len(rest) > 1:
                shared[want.adapter] = rest


def _enter(owners: dict[str, str], shared: dict[str, tuple[str, ...]], asks: Iterable[Ask]) -> None:
    for each in asks:
        key = each.wave.meta.key
        for name in owners.keys() & each.by_name.keys():
            shared[name] = tuple(sorted({owners[name], key, *shared.get(name, ())}))
        owners.update({name: key for name in each.by_name if name not in owners})
