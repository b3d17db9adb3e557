"""What several waves that ask for one adapter want together, and what prevents two of them from sharing it. Pure."""

from collections.abc import Mapping, Sequence

from mint_contracts.records import Mentions, Tier
from mint_operator.planning import conditions
from mint_operator.planning.adapters import Want, of_one_namespace
from mint_operator.planning.asking import Asks
from mint_operator.planning.refusal import Refusal

Pins = tuple[str, ...]


def merge(before: Want | None, want: Want) -> Want:
    """Combine two wants: as many and as warm copies as either asks for, on engines that both allow."""
    if before is None:
        return want
    yields = _yields(before, want)
    residency: Tier = max(before.residency, want.residency, key=lambda tier: tier.warmth)
    return Want(
        adapter=want.adapter,
        source=want.source if yields else before.source,
        residency=residency,
        replicas=max(before.replicas, want.replicas),
        waves=tuple(sorted({*before.waves, *want.waves})),
        priority=max(before.priority, want.priority),
        pins=_pins(before, want) or (),  # incompatible only if one wave is kept as it is, which is never refused
        at_home=before.at_home and want.at_home,
        source_from=want.source_from if yields else (),
    )


def conflict(merged: Mapping[str, Want], asks: Asks, wave: str, names: Sequence[str]) -> Refusal | None:
    """Return why a wave cannot share adapters with the waves before it; None if it can."""
    for name in names:
        want, other = asks.of(wave, name), merged.get(name)
        if other is None:
            continue
        if other.source != want.source and not _yields(other, want):
            return Refusal(
                conditions.SOURCE_CONFLICT,
                f"adapter {name} is {shown(want)} here but {_elsewhere(other, wave)}, which comes first; use "
                "the same source, or another name",
                mentions=Mentions((name,), _known(other, wave), others=True),
            )
        if _pins(other, want) is None:
            return Refusal(
                conditions.ENGINES_CONFLICT,
                f"adapter {name} is wanted {_held(want)} here but {_held_elsewhere(other, wave)}, which comes first, "
                "and no engines satisfy both; change spec.serve.engines or spec.serve.replicas of one of them",
                mentions=Mentions((name,), _known(other, wave)),
            )
    return None


def shown(want: Want) -> str:
    """Return an adapter's source as text for people."""
    source = want.source
    return f"{source.uri} at {source.revision}" if source.revision else source.uri


def _yields(before: Want, want: Want) -> bool:
    """Whether the later want decides the source."""
    return bool(before.source_from) and want.waves[0] in before.source_from


def _pins(before: Want, want: Want) -> Pins | None:
    """Return the engines that both allow (empty: any); None if they are too few.

    If both name engines, one's must include all of the other's: then admission has already checked, for the other
    wave alone, that they hold all of its adapters.
    """
    if before.at_home or want.at_home:
        return want.pins if before.at_home else before.pins
    found = before.pins or want.pins
    if before.pins and want.pins:
        fewer, more = sorted((before.pins, want.pins), key=len)
        if not set(fewer) <= set(more):
            return None
        found = fewer
    return found if not found or len(found) >= max(before.replicas, want.replicas) else None


def _elsewhere(other: Want, wave: str) -> str:
    """Say what a name means in the wave that comes first, as far as this wave may know."""
    known = _known(other, wave)
    return f"{shown(other)} in wave {known[0]}" if known else "a different source in a wave of another namespace"


def _held_elsewhere(other: Want, wave: str) -> str:
    known = _known(other, wave)
    return f"{_held(other)} by wave {known[0]}" if known else "otherwise by a wave of another namespace"


def _held(want: Want) -> str:
    where = f" ({', '.join(want.pins)} only)" if want.pins else ""
    return f"on {want.replicas} engines{where}"


def _known(other: Want, wave: str) -> tuple[str, ...]:
    """Return one of the other want's waves that `wave` may know of, if there is one."""
    return tuple(each for each in other.waves if of_one_namespace(wave, each))[:1]
