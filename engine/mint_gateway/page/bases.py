"""Base models and their engines as shown on the page: pure, from MapViews."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import msgspec

from mint_contracts.records import EngineRecord, Held, Tier
from mint_gateway.view import Engine, MapView

ENGINES_SHOWN = 32  # per base, by name; all of them are counted
MOST_DETAIL = 500  # characters of an error message


class Tally(msgspec.Struct, frozen=True):
    """How many adapters an engine holds, each counted in its warmest tier, and how many it failed to load."""

    device: int = 0
    host: int = 0
    disk: int = 0
    failed: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.device + other.device, self.host + other.host, self.disk + other.disk, self.failed + other.failed
        )


class SeenEngine(msgspec.Struct, frozen=True):
    """One engine. `state` is one word, `said` its details."""

    name: str
    state: str
    said: str
    slots_used: int | None  # None: not shown, since slots may hold adapters that the key does not open
    slots_total: int
    running: int
    waiting: int
    held: Tally


class SeenBase(msgspec.Struct, frozen=True):
    """One base. Sums are over live engines; `engines` are the first ENGINES_SHOWN, live or not."""

    base_model: str
    map_version: int | None  # None: the map is not complete, and the last known state is shown
    engines_max: int
    placed: int  # number of adapters placed on the base
    states: Mapping[str, int]  # engines by state
    slots_used: int | None
    slots_total: int
    running: int
    waiting: int
    held: Tally
    engines: list[SeenEngine]
    more_engines: int


class Total(msgspec.Struct, frozen=True):
    """All base models together; engine figures are over live engines."""

    bases: int
    placed: int
    engines: int
    ready: int
    slots_used: int | None  # None as for one engine
    slots_total: int
    running: int
    waiting: int


def total(views: Collection[MapView], placed: int, *, all_open: bool) -> Total:
    """Sum up these views, with `placed` adapters; `all_open`: the key's scope opens every adapter."""
    engines = [engine for view in views for engine in view.engines.values() if engine.alive]
    return Total(
        bases=len(views),
        placed=placed,
        engines=len(engines),
        ready=sum(engine.available for engine in engines),
        slots_used=sum(engine.record.slots_used for engine in engines) if all_open else None,
        slots_total=sum(engine.record.slots_total for engine in engines),
        running=sum(engine.record.running for engine in engines),
        waiting=sum(engine.record.waiting for engine in engines),
    )


def tally(held: Mapping[str, Held]) -> Tally:
    """Count what one engine holds. Adapters that it knows but does not hold are not counted."""
    counts = Counter("failed" if each.failure else each.tier for each in held.values())
    return Tally(counts[Tier.DEVICE], counts[Tier.HOST], counts[Tier.DISK], counts["failed"])


def seen(view: MapView, placed: int, tallies: Mapping[str, Tally]) -> SeenBase:
    """Return one base as the page shows it, with `placed` adapters; `tallies` are by engine name."""
    all_open = view.scope.adapters is None
    engines = [_engine(each, tallies.get(each.name, Tally()), all_open) for _, each in sorted(view.engines.items())]
    alive = [each for each in engines if each.state != "Silent"]
    return SeenBase(
        base_model=view.base,
        map_version=view.version,
        engines_max=view.record.engines_max if view.record else 0,
        placed=placed,
        states=Counter(each.state for each in engines),
        slots_used=sum(each.slots_used or 0 for each in alive) if all_open else None,
        slots_total=sum(each.slots_total for each in alive),
        running=sum(each.running for each in alive),
        waiting=sum(each.waiting for each in alive),
        held=_sum(each.held for each in alive),
        engines=engines[:ENGINES_SHOWN],
        more_engines=max(0, len(engines) - ENGINES_SHOWN),
    )


def _sum(tallies: Iterable[Tally]) -> Tally:
    return sum(tallies, Tally())


def _engine(engine: Engine, held: Tally, all_open: bool) -> SeenEngine:
    record = engine.record
    state, detail = _state(engine)
    return SeenEngine(
        name=engine.name,
        state=state,
        said=detail[:MOST_DETAIL],
        slots_used=record.slots_used if all_open else None,
        slots_total=record.slots_total,
        running=record.running,
        waiting=record.waiting,
        held=held,
    )


def _state(engine: Engine) -> tuple[str, str]:
    """Return a live engine's state and details. Neither ready nor failed but still at work means it is draining."""
    record = engine.record
    if not engine.alive:
        return "Silent", "its heartbeat ran out"
    if record.failure:
        return "Failed", f"{record.failure.reason}: {record.failure.message}"
    if record.bringing:
        return "Loading", _bringing(record)
    if record.ready:
        return "Ready", ""
    if record.running or record.waiting or record.slots_used:
        return "Draining", "takes no new requests"
    return "Starting", "is not ready yet"


def _bringing(record: EngineRecord) -> str:
    bringing = record.bringing
    if bringing is None or bringing.percent is None:
        return "the base"
    left = f", about {bringing.left_s} s left" if bringing.left_s is not None else ""
    return f"{bringing.phase.lower()} the base: {bringing.percent} %{left}"
