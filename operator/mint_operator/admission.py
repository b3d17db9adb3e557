"""Which waves of a base are admitted, each whole or not at all, and what they want together."""

from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.records import Tier
from mint_operator import capacity, conditions
from mint_operator.adapters import Refusal, Want, resolve
from mint_operator.snapshot import ObservedBase, ObservedWave


class Admission(msgspec.Struct, frozen=True):
    """`wants` by adapter, in the order in which waves come; `refused` by wave; `wanted` by admitted wave."""

    engines: int
    wants: Mapping[str, Want]
    wanted: Mapping[str, tuple[Want, ...]]
    refused: Mapping[str, Refusal]


def in_order(waves: Sequence[ObservedWave]) -> list[ObservedWave]:
    """Waves by priority, then age, then name."""
    return sorted(waves, key=lambda wave: (-wave.spec.priority, wave.meta.created, wave.meta.key))


def admit(base: ObservedBase, waves: Sequence[ObservedWave]) -> Admission:
    """Admit waves in order. One that waits does not hold up a smaller one behind it, and is asked first next time."""
    limits = capacity.bounds(base)
    wants: dict[str, Want] = {}
    wanted: dict[str, tuple[Want, ...]] = {}
    refused: dict[str, Refusal] = {}
    taken, replicas = 0, 0
    for wave in in_order(waves):
        key, asked = wave.meta.key, resolve(wave, base)
        if isinstance(asked, Refusal):
            refused[key] = asked
            continue
        merged = [_merge(wants.get(want.adapter), want) for want in asked]
        more = sum(want.slots for want in merged) - _slots(wants, asked)
        alone = sum(want.slots for want in asked)
        verdict = (
            _conflict(wants, asked)
            or capacity.never(limits, alone, wave.spec.serve.replicas, len(asked))
            or capacity.now(limits, taken, more)
        )
        if verdict is not None:
            refused[key] = verdict
            continue
        wants.update((want.adapter, want) for want in merged)
        wanted[key] = asked
        taken += more
        replicas = max(replicas, wave.spec.serve.replicas)
    return Admission(engines=limits.engines(taken, replicas), wants=wants, wanted=wanted, refused=refused)


def _merge(before: Want | None, want: Want) -> Want:
    """Both wants as one: as many copies as either asks for, as warm as either asks for."""
    if before is None:
        return want
    residency: Tier = max(before.residency, want.residency, key=lambda tier: tier.warmth)
    replicas = max(before.replicas, want.replicas)
    return Want(want.adapter, before.source, residency, replicas, (*before.waves, *want.waves))


def _slots(wants: Mapping[str, Want], asked: Sequence[Want]) -> int:
    return sum(wants[want.adapter].slots for want in asked if want.adapter in wants)


def _conflict(wants: Mapping[str, Want], asked: Sequence[Want]) -> Refusal | None:
    for want in asked:
        other = wants.get(want.adapter)
        if other is not None and other.source != want.source:
            return Refusal(
                conditions.SOURCE_CONFLICT,
                f"adapter {want.adapter} is {_shown(want)} here but {_shown(other)} in wave {other.waves[0]}, which "
                "comes first; give it one source, or another name",
            )
    return None


def _shown(want: Want) -> str:
    source = want.source
    return f"{source.uri} at {source.revision}" if source.revision else source.uri
