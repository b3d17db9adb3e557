"""Choosing the engine that answers: pure functions over a MapView.

The warmest live copy comes first, then the engines of the plan, then rendezvous hashing.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping

import msgspec

from mint_contracts.errors import AdapterNotFound, Internal, MintError, by_reason
from mint_contracts.records import Held, Tier
from mint_gateway.view import Engine, MapView, incomplete, unread

LOAD_FACTOR = 1.25
"""An engine takes at most this multiple of its fair share: c in Mirrokni, Thorup, Zadimoghaddam,
"Consistent Hashing with Bounded Loads" (arXiv 1608.01350)."""


class Now(msgspec.Struct, frozen=True):
    """What this gateway knows by itself, in addition to the placement map."""

    in_flight: Mapping[str, int] = {}  # its own requests, by engine
    broken: frozenset[str] = frozenset()  # engines whose connection fails
    map_away: bool = False  # Redis does not answer, so no heartbeat can be judged


class Candidate(msgspec.Struct, frozen=True):
    """One engine that may answer, and the reason for its rank."""

    engine: str
    address: str
    why: str
    behind: bool  # the adapter is placed in a version of the map that the engine has not read yet


def candidates(view: MapView, adapter: str, now: Now) -> list[Candidate]:
    """Return the engines that may answer, best first; empty if none can now.

    An engine whose connection fails, or that was not ready when Redis went away, ranks after all others.
    """
    able = [engine for engine in view.engines.values() if _may_answer(engine, now)]
    if not adapter:
        ordered = [
            (engine, f"least loaded: {load(engine, now)} requests in flight")
            for engine in sorted(able, key=lambda engine: (load(engine, now), engine.name))
        ]
    else:
        ordered = _for_adapter(view, adapter, able, now)
    sure = [(engine, why) for engine, why in ordered if not _doubt(engine, now)]
    unsure = [(engine, f"{why}; {_doubt(engine, now)}") for engine, why in ordered if _doubt(engine, now)]
    placed = adapter in view.placements
    return [
        Candidate(engine.name, engine.record.address, why, placed and engine.record.map_version < (view.version or 0))
        for engine, why in sure + unsure
    ]


def refusal(view: MapView, adapter: str, now: Now) -> MintError | None:
    """Return the error to answer at once if no engine can serve the adapter: it is unknown, or loading it fails.

    While the map is away or incomplete, an unknown adapter may exist after all: the error is then MapUnavailable.
    """
    if not adapter:
        return None
    if view.source(adapter) is None:
        if view.record is None or view.version is None:
            return incomplete(view.base)
        if now.map_away:
            return unread(f"adapter {adapter!r}")
        return not_served(view, adapter)
    asked = _asked(view, adapter)
    failed = [engine for engine in asked if _refused(view, engine, adapter)]
    if not failed or any(_may_answer(engine, now) and engine not in failed for engine in asked):
        return None
    return _as_error(failed[0].held[adapter], adapter)


def not_served(view: MapView, adapter: str) -> AdapterNotFound:
    """Return the error that nothing serves the adapter; it says where the gateway looked."""
    where = f"no wave serves it on {view.base}, no engine has published it, and {_nowhere(view, adapter)}"
    return AdapterNotFound(f"adapter {adapter!r}", f"{where}; check the name, or apply an AdapterWave that names it")


def leads(view: MapView, engine: Engine, adapter: str, now: Now) -> bool:
    """Return whether the engine ranks before every engine that neither holds the adapter nor is placed to hold it."""
    if _doubt(engine, now) or _refused(view, engine, adapter):
        return False
    placement = view.placements.get(adapter)
    placed = placement is not None and any(place.engine == engine.name for place in placement.places)
    return placed or view.copy(engine, adapter) is not None


def load(engine: Engine, now: Now) -> int:
    """Return the engine's requests in flight: this gateway's own plus those that the engine last reported."""
    return now.in_flight.get(engine.name, 0) + engine.record.running + engine.record.waiting


def home_order(adapter: str, engines: Collection[Engine], now: Now) -> list[tuple[Engine, str]]:
    """Order engines by weighted rendezvous hashing (weights: slots), those at their load bound last.

    The first is the adapter's home engine. When an engine leaves, only the adapters whose home it was move.
    """
    weights = {engine.name: max(1, engine.record.slots_total) for engine in engines}
    everyone, all_loads = sum(weights.values()), sum(load(engine, now) for engine in engines) + 1
    by_hash = sorted(engines, key=lambda engine: (-_score(adapter, engine.name, weights[engine.name]), engine.name))
    under: list[tuple[Engine, str]] = []
    over: list[tuple[Engine, str]] = []
    for engine in by_hash:
        bound = math.ceil(LOAD_FACTOR * all_loads * weights[engine.name] / everyone)
        if load(engine, now) < bound:
            passed = f", after {len(over)} busier than {LOAD_FACTOR}x their share" if over and not under else ""
            why = f"home engine by rendezvous hashing{passed}" if not under else "next by rendezvous hashing"
            under.append((engine, why))
        else:
            over.append((engine, f"next by rendezvous hashing, but busy: {load(engine, now)} of {bound} in flight"))
    return under + over


def _for_adapter(view: MapView, adapter: str, able: list[Engine], now: Now) -> list[tuple[Engine, str]]:
    able = [engine for engine in able if not _refused(view, engine, adapter)]
    holders = [(engine, held) for engine in able if (held := view.copy(engine, adapter))]
    holders.sort(key=lambda pair: (-pair[1].tier.warmth, load(pair[0], now), pair[0].name))
    ordered = [(engine, _holder_why(held, holders)) for engine, held in holders]

    placement = view.placements.get(adapter)
    rest = {engine.name: engine for engine in able if view.copy(engine, adapter) is None}
    if placement:
        places = [place for place in placement.places if place.engine in rest]
        places.sort(key=lambda place: (-place.residency.warmth, load(rest[place.engine], now), place.engine))
        for place in places:
            ordered.append((rest.pop(place.engine), f"the plan wants it here ({place.residency}): {place.why}"))
    if view.source(adapter) == view.stored(adapter):
        # Any engine can read from the store; any other source is known only to the engines that the plan chose. An
        # engine whose connection fails must not count as a home, or its adapters would stay with it.
        sure = [engine for engine in rest.values() if not _doubt(engine, now)]
        unsure = [engine for engine in rest.values() if _doubt(engine, now)]
        ordered += home_order(adapter, sure, now) + home_order(adapter, unsure, now)
    return ordered


def _holder_why(held: Held, holders: Iterable[tuple[Engine, Held]]) -> str:
    same = sum(1 for _, other in holders if other.tier is held.tier)
    whence = " (published by Trainer calls)" if held.published else ""
    return f"holds it in {held.tier}{whence}" + (f", least loaded of {same} that do" if same > 1 else "")


def _may_answer(engine: Engine, now: Now) -> bool:
    return now.map_away or engine.available


def _doubt(engine: Engine, now: Now) -> str:
    """Return why the engine ranks after all others; empty if it does not."""
    if engine.name in now.broken:
        return "its connection fails"
    return "" if engine.available else "it was not ready when last seen"


def _asked(view: MapView, adapter: str) -> list[Engine]:
    """Return the engines whose reports decide whether the adapter can be loaded at all."""
    placement = view.placements.get(adapter)
    names = sorted({place.engine for place in placement.places}) if placement else sorted(view.engines)
    return [view.engines[name] for name in names if name in view.engines]


def _nowhere(view: MapView, adapter: str) -> str:
    if view.stored(adapter):
        return "no engine has fetched it from that base's adapter store"
    if view.record is not None and view.record.catalog is not None:
        return "it is not in that base's catalog"
    if view.record is not None and view.record.store is not None:
        return "it is not in that base's adapter store"
    return "that base has no adapter store"


def _refused(view: MapView, engine: Engine, adapter: str) -> bool:
    """Return whether loading from the current source failed on the engine for good."""
    held = engine.held.get(adapter)
    if held is None or held.failure is None or held.source != view.source(adapter):
        return False
    return held.failure.terminal and held.tier is Tier.REMOTE


def _as_error(held: Held, adapter: str) -> MintError:
    failure = held.failure
    kind = (by_reason(failure.reason) if failure else None) or Internal
    return kind(f"adapter {adapter!r}", failure.message if failure else "")


def _score(adapter: str, engine: str, weight: int) -> float:
    """Return -w / ln(u): an engine has the largest score with a probability proportional to its weight."""
    digest = hashlib.blake2b(f"{adapter}\0{engine}".encode(), digest_size=6).digest()
    draw = (int.from_bytes(digest, "big") + 0.5) / 2**48  # within (0, 1) even after rounding to 53 bits
    return -weight / math.log(draw)
