"""Decides which waves of a base are admitted, each completely or not at all, and what they want together."""

from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.records import Placement
from mint_operator.planning import capacity
from mint_operator.planning.adapters import Want
from mint_operator.planning.asking import NOBODY, Ask, Asks, ask
from mint_operator.planning.naming import Claim, barred
from mint_operator.planning.pinned import Pinned
from mint_operator.planning.refusal import Refusal
from mint_operator.planning.shards import Shards
from mint_operator.planning.sharing import conflict, merge
from mint_operator.planning.sizes import Size
from mint_operator.planning.snapshot import ObservedBase, ObservedWave
from mint_operator.planning.turns import by_namespace, in_turn, quota


class Case(msgspec.Struct, frozen=True):
    """What one wave takes by itself, how many engines it needs at least, and why it can never be admitted."""

    ask: Ask
    quota: int
    alone: capacity.Demand
    engines: int
    never: Refusal | None


class Admission(msgspec.Struct, frozen=True):
    """The result: `wants` by adapter; `refused` by wave; `turns`: each admitted wave's turn, from 0."""

    asks: Asks
    engines: int
    wants: Shards[Want]
    refused: Mapping[str, Refusal]
    turns: Mapping[str, int]
    merged: Mapping[str, Want]  # of `wants`, those that several admitted waves share
    cases: Mapping[str, Case]
    limits: capacity.Bounds
    sizes: Mapping[str, Size]

    def wanted(self, wave: str) -> tuple[Want, ...]:
        """What one admitted wave asks for by itself."""
        return self.asks.by_wave[wave].wants


class _Tally(msgspec.Struct):
    """What the waves admitted so far take."""

    taken: capacity.Demand
    pinned: Pinned
    by_namespace: dict[str, int]
    merged: dict[str, Want]
    replicas: int = 0


def admit(
    base: ObservedBase,
    waves: Sequence[ObservedWave],
    before: Admission | None,
    sizes: Mapping[str, Size],
    reserved: capacity.Demand,
    held: Mapping[str, int],
    claims: Mapping[str, Claim],
    there: Mapping[str, Placement],
) -> Admission:
    """Admit waves by turn. A waiting wave does not block a smaller one behind it, and is considered before it again.

    Waves that are kept as they are (see `Ask.kept`) come before all others, and are never refused what they have.

    `reserved` is what training takes: it holds leases and comes before every wave that only serves. `held` are the
    slots of it that each namespace has, which count in its quota and its share. `claims` are policies' claims on
    names; `there` is what the map has placed.
    """
    asks = ask(base, waves, before.asks if before else NOBODY)
    limits, tenants = capacity.bounds(base), by_namespace(base.spec.tenants)
    shared, kept_out = _shared_of(asks), barred(asks, claims, there)
    tally = _Tally(taken=reserved, pinned=Pinned(limits.slots), by_namespace=dict(held), merged={})
    last = before.cases if before is not None and before.limits == limits else {}
    same_sizes = before is not None and before.sizes is sizes
    cases: dict[str, Case] = {}
    refused: dict[str, Refusal] = {}
    turns: dict[str, int] = {}
    waiting: list[str] = []
    order = in_turn(asks.by_wave.values(), tenants, held)
    for each in sorted(order, key=lambda each: not each.kept):
        key, most = each.wave.meta.key, quota(tenants, each.wave.meta.namespace)
        case = last.get(key)
        known = case is not None and case.ask is each and case.quota == most and (same_sizes or each.slots)
        if case is None or not known:
            case = _case(each, most, limits, sizes)
        cases[key] = case
        verdict = None if each.kept else kept_out.get(key)
        verdict = verdict or _add(tally, case, asks, shared.get(key, ()), limits, sizes)
        if verdict is None:
            turns[key] = len(turns)
            continue
        refused[key] = verdict
        if not verdict.terminal:
            waiting.append(key)
    for position, key in enumerate(waiting, start=1):
        refused[key] = refused[key].at(position, len(waiting))
    return Admission(
        asks=asks,
        engines=limits.engines(tally.taken, tally.replicas),
        wants=_wants(asks, turns, tally.merged, before),
        refused=refused,
        turns=turns,
        merged=tally.merged,
        cases=cases,
        limits=limits,
        sizes=sizes,
    )


def _case(each: Ask, quota: int, limits: capacity.Bounds, sizes: Mapping[str, Size]) -> Case:
    alone = capacity.demand(each, sizes)
    engines = max(each.replicas, 1 + max(each.spec.serve.engines, default=-1))
    return Case(each, quota, alone, engines, each.refusal or capacity.never(limits, each, quota, alone, sizes))


def _add(
    tally: _Tally, case: Case, asks: Asks, names: Sequence[str], limits: capacity.Bounds, sizes: Mapping[str, Size]
) -> Refusal | None:
    """Count a wave in, or return why not. `names` are those of its adapters that others ask for, too."""
    meta = case.ask.wave.meta
    held = tally.by_namespace.get(meta.namespace, 0)
    merged = {name: merge(tally.merged.get(name), asks.of(meta.key, name)) for name in names}
    more = _more(meta.key, case.alone, asks, merged, tally, sizes) if names else case.alone
    verdict = (
        None
        if case.ask.kept
        else (
            (conflict(tally.merged, asks, meta.key, names) if names else None)
            or case.never
            or capacity.over_quota(meta.namespace, case.quota, held, more.slots)
            or tally.pinned.refusal(case.ask, merged)
            or capacity.now(limits, tally.taken, more)
        )
    )
    if verdict is None:
        tally.merged.update(merged)
        tally.pinned.add(case.ask, merged)
        tally.taken = tally.taken.plus(more)
        tally.by_namespace[meta.namespace] = held + more.slots
        tally.replicas = max(tally.replicas, case.engines)
    return verdict


def _shared_of(asks: Asks) -> dict[str, list[str]]:
    """Return wave -> its adapters that others ask for, too."""
    found: dict[str, list[str]] = {}
    for name, keys in asks.shared.items():
        for key in keys:
            found.setdefault(key, []).append(name)
    return found


def _more(
    key: str,
    demand: capacity.Demand,
    asks: Asks,
    merged: Mapping[str, Want],
    tally: _Tally,
    sizes: Mapping[str, Size],
) -> capacity.Demand:
    """Return what admitting a wave of this `demand` takes in addition; what it shares with others counts once."""
    for name, want in merged.items():
        demand = demand.minus(capacity.of(asks.of(key, name), sizes)).plus(capacity.of(want, sizes))
        known = tally.merged.get(name)
        if known is not None:
            demand = demand.minus(capacity.of(known, sizes))
    return demand


def _wants(
    asks: Asks, turns: Mapping[str, int], merged: Mapping[str, Want], before: Admission | None
) -> Shards[Want]:
    """Return everything that admitted waves want; unchanged wants stay the same objects."""
    if before is None:
        return Shards({want.adapter: want for key in turns for want in asks.by_wave[key].wants} | dict(merged))
    was, now = before.asks.by_wave, asks.by_wave
    gone = [was[key] for key in before.turns if key not in turns or was[key].wants is not now[key].wants]
    come = [now[key] for key in turns if key not in before.turns or was[key].wants is not now[key].wants]
    if not gone and not come and merged == before.merged:
        return before.wants
    names = {name for each in (*gone, *come) for name in each.by_name}
    names |= merged.keys() | before.merged.keys()
    wants = {name: want for name in names if (want := _want(asks, turns, merged, name)) is not None}
    new = {name: want for name, want in wants.items() if before.wants.get(name) != want}
    return before.wants.changed(new, names - wants.keys())


def _want(asks: Asks, turns: Mapping[str, int], merged: Mapping[str, Want], name: str) -> Want | None:
    if name in merged:
        return merged[name]
    owner = asks.owners.get(name)
    return asks.of(owner, name) if owner in turns and owner is not None else None
