"""The copies of one wave's adapters: where each should be, and what its engine reports."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from mint_contracts.records import Failure, Placement, Tier
from mint_operator.planning.adapters import Want
from mint_operator.planning.engines import Engine


class Standing(StrEnum):
    """The state of a wanted copy, best first."""

    READY = "ready"
    LOADING = "loading"
    FAILED = "failed"
    STARTING = "starting"
    AWAY = "away"


READY, LOADING, FAILED, STARTING, AWAY = Standing  # looking up an enum's member costs more than making a copy
_ORDER = {standing: index for index, standing in enumerate(Standing)}


class Copy(msgspec.Struct, frozen=True, gc=False):
    """One copy that a wave wants, on the engine that the plan chose for it."""

    adapter: str
    engine: str
    standing: Standing
    tier: Tier = Tier.REMOTE
    failure: Failure | None = None


def copies(wants: Sequence[Want], placed: Mapping[str, Placement], engines: Mapping[str, Engine]) -> tuple[Copy, ...]:
    """Return the copies of a wave: of each adapter as many as it wants, the best ones if other waves want more."""
    found: list[Copy] = []
    for want in wants:
        placement = placed.get(want.adapter)
        if placement is None:
            continue
        each = [_copy(want, engines[place.engine]) for place in placement.places]
        if len(each) > want.replicas:
            each.sort(key=lambda copy: (_ORDER[copy.standing], -copy.tier.warmth))
            del each[want.replicas :]
        found += each
    return tuple(found)


def _copy(want: Want, engine: Engine) -> Copy:
    """Return the copy; ready only if a ready engine holds exactly this source, warm enough and without a failure."""
    if engine.record is None:
        return Copy(want.adapter, engine.name, STARTING if engine.starting else AWAY)
    held = engine.held.get(want.adapter)
    if held is None or held.source != want.source:
        return Copy(want.adapter, engine.name, LOADING)
    if held.failure is not None:
        return Copy(want.adapter, engine.name, FAILED, held.tier, held.failure)
    warm = engine.record.ready and held.tier.warmth >= want.residency.warmth
    return Copy(want.adapter, engine.name, READY if warm else LOADING, held.tier)
