"""Explaining where an adapter is and why, and which engine would answer now: pure functions over a MapView."""

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence

import msgspec

from mint_contracts import placement_pb2
from mint_contracts.listing import and_more
from mint_contracts.records import Held, Placement, Tier
from mint_gateway.choose import Now, candidates, leads, refusal
from mint_gateway.first_names import first_names
from mint_gateway.view import Engine, MapView

AT_ONCE = 1_000  # adapters whose holders are looked up at once
SHOWN = 5  # most engines named in one explanation


def explain(view: MapView, adapter: str, now: Now) -> placement_pb2.Explanation:
    """Explain one adapter, or the bare base if `adapter` is empty.

    Raises the error of `refusal` for an unknown adapter.
    """
    placement = view.placements.get(adapter)
    source = view.source(adapter) if adapter else None
    refused = refusal(view, adapter, now)
    if refused is not None and source is None:
        raise refused
    ranked = [] if refused else candidates(view, adapter, now)
    names = {place.engine for place in placement.places} if placement else set()
    names |= {engine.name for engine in view.engines.values() if adapter in engine.held}
    names |= {candidate.engine for candidate in ranked[: 1 if adapter else SHOWN]}
    explanation = placement_pb2.Explanation(
        base_model=view.base,
        adapter=adapter,
        waves=placement.waves if placement else (),
        source_uri=source.uri if source else "",
        holders=[_holder(view, name, adapter, placement) for name in sorted(names)],
        map_version=view.version or 0,
    )
    if ranked:
        explanation.chosen_engine, explanation.chosen_because = ranked[0].engine, ranked[0].why
    else:
        explanation.chosen_because = str(refused) if refused else why_none_answers(view, adapter, now)
    return explanation


async def explain_all(
    view: MapView, now: Now, after: str = "", wanted: int = 0
) -> AsyncGenerator[placement_pb2.Explanation, None]:
    """Yield the explanation of every adapter that is placed or held, by name, starting after the name `after`.

    All names are scanned again after `wanted` adapters, or after AT_ONCE if that is more. The time for each adapter
    does not grow with the number of engines, as long as a holder or a placed engine can answer.
    """
    every = [view.placements, *(engine.held for engine in view.engines.values())]
    while following := await first_names(every, after, max(wanted, AT_ONCE)):
        for start in range(0, len(following), AT_ONCE):
            for explanation in _explain_some(view, now, following[start : start + AT_ONCE]):
                yield explanation
        after = following[-1]


def _explain_some(view: MapView, now: Now, names: Sequence[str]) -> Iterator[placement_pb2.Explanation]:
    holders = {name: [each for each in view.engines.values() if name in each.held] for name in names}
    looked_at = view
    if view.record is not None and view.record.catalog is not None:
        last = {name: engines[-1].held[name] for name, engines in holders.items() if engines}
        held = {name: each.source for name, each in last.items() if not each.published}
        looked_at = msgspec.structs.replace(view, catalogued=held)  # the catalog itself is not read
    for name in names:
        # A copy that outlived both its wave and its store is left out: no request can use it.
        if looked_at.source(name) is not None:
            yield explain(_as_far_as_needed(looked_at, name, holders[name], now), name, now)


def _as_far_as_needed(view: MapView, adapter: str, holders: Iterable[Engine], now: Now) -> MapView:
    """Restrict the view to the adapter's holders and placed engines if no other engine would rank before them."""
    near = {engine.name: engine for engine in holders}
    if placement := view.placements.get(adapter):
        near |= {each.engine: view.engines[each.engine] for each in placement.places if each.engine in view.engines}
    if any(leads(view, engine, adapter, now) for engine in near.values()):
        return msgspec.structs.replace(view, engines=near)
    return view


def why_none_answers(view: MapView, adapter: str, now: Now) -> str:
    """Say why no engine can answer, engine by engine."""
    placement = view.placements.get(adapter)
    names = sorted({place.engine for place in placement.places} if placement else view.engines)
    if not names:
        return "no engine of it can answer now: none has reported yet"
    states = [f"{name} {_state(view.engines.get(name), now)}" for name in names[:SHOWN]]
    return f"no engine of it can answer now: {', '.join(states)}{and_more(names, SHOWN)}"


def _state(engine: Engine | None, now: Now) -> str:
    if engine is None:
        return "has not reported"
    if not engine.alive and not now.map_away:
        return "is silent (its heartbeat ran out)"
    if engine.record.failure:
        return f"could not load the base ({engine.record.failure.reason}: {engine.record.failure.message})"
    if not engine.record.ready:
        return "is not ready"
    return "does not answer at its address" if engine.name in now.broken else "gave no answer"


def _holder(view: MapView, name: str, adapter: str, placement: Placement | None) -> placement_pb2.Holder:
    engine = view.engines.get(name)
    holder = placement_pb2.Holder(engine=name)
    if placement:
        for place in placement.places:
            if place.engine == name:
                holder.wanted, holder.wanted_because = place.residency, place.why
    if engine is None:
        return holder
    holder.available, holder.address = engine.available, engine.record.address
    held = engine.held.get(adapter)
    if held is not None and engine.alive:  # a dead engine reports nothing
        holder.residency, holder.revision = held.tier, held.revision
        holder.failure = _failure(view, held, adapter)
    return holder


def _failure(view: MapView, held: Held, adapter: str) -> str:
    if held.failure:
        return f"{held.failure.reason}: {held.failure.message}"
    if held.source != view.source(adapter) and held.tier is not Tier.REMOTE:
        return f"holds it from another source, {held.source.uri}"
    return ""
