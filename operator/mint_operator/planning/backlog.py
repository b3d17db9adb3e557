"""What engines still have to load, and how long that takes at the rate that each reports."""

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from mint_contracts.durations import span
from mint_contracts.records import Held, Tier
from mint_contracts.resources import LoadingStatus
from mint_operator.planning.copies import FAILED, READY, Copy
from mint_operator.planning.engines import Engine, grace_left_s
from mint_operator.planning.snapshot import BaseMap

Given = Mapping[str, Mapping[str, Tier]]  # engine -> adapter -> tier

_NOTHING: Mapping[str, Tier] = {}


class Backlog(msgspec.Struct, frozen=True):
    """How many `copies` that one engine is `given` are not as warm yet as they should be, without a failure.

    `takes_s`: seconds until they are; None if unknown. The copies of an engine that is away are loaded by others once
    its grace has ended; those that the others have not taken by then fit nowhere and wait for the engine.
    """

    given: Mapping[str, Tier]
    held: Mapping[str, Held]
    copies: int
    takes_s: float | None


Backlogs = Mapping[str, Backlog]


def backlogs(given: Given, engines: Sequence[Engine], before: Backlogs, known: BaseMap) -> Backlogs:
    """Return each engine's backlog; recounted only if what it is given or holds has changed since `before`."""
    found: dict[str, Backlog] = {}
    away: list[Engine] = []
    for engine in engines:
        backlog = _counted(engine, given.get(engine.name, _NOTHING), before)
        if backlog.copies and engine.record is None:
            away.append(engine)
        else:
            backlog = _taking(backlog, _seconds(backlog.copies, _rate(engine)))
        found[engine.name] = backlog
    if away:
        ready = [engine for engine in engines if engine.ready]
        together, left = sum(map(_rate, ready)), sum(found[engine.name].copies for engine in ready)
        for engine in away:
            backlog = found[engine.name]
            takes_s = _seconds(backlog.copies + left, together)
            if takes_s is not None:
                goes = not engine.lost and _is_movable(
                    backlog.given, [given.get(each.name, _NOTHING) for each in ready]
                )
                waits_s = max(0.0, grace_left_s(engine.name, known))
                takes_s = waits_s + takes_s if goes else None
            found[engine.name] = _taking(backlog, takes_s)
    return found


def times(of: Backlogs) -> dict[str, float]:
    """Return the seconds by engine; infinite if unknown."""
    return {name: math.inf if each.takes_s is None else each.takes_s for name, each in of.items()}


def of_base(of: Backlogs) -> LoadingStatus:
    """Return all that a base has to load; it takes as long as its slowest engine's part."""
    took = times(of)
    return _status(sum(each.copies for each in of.values()), max(took.values(), default=0.0))


class Waits(msgspec.Struct, frozen=True):
    """What a wave waits for: this number of copies, on these engines."""

    copies: int = 0
    engines: frozenset[str] = frozenset()


def waits(copies: Iterable[Copy]) -> Waits:
    """Return which of these copies are still to be loaded."""
    unready = [each.engine for each in copies if each.standing is not READY and each.standing is not FAILED]
    return Waits(len(unready), frozenset(unready))


def of_wave(waits: Waits, took: Mapping[str, float]) -> LoadingStatus:
    """Return what a wave has to load; it takes at most until its last engine has loaded, by these `times`."""
    return _status(waits.copies, max([took.get(name, math.inf) for name in waits.engines], default=0.0))


def _counted(engine: Engine, given: Mapping[str, Tier], before: Backlogs) -> Backlog:
    last = before.get(engine.name)
    if last is not None and last.given is given and last.held is engine.held:
        return last
    held = engine.held
    copies = sum(_loads(held.get(name), tier) for name, tier in given.items()) if held else len(given)
    return Backlog(given, held, copies, None)


def _is_movable(copies: Iterable[str], others: Sequence[Mapping[str, Tier]]) -> bool:
    """Whether for each of these adapters some other engine has no copy yet."""
    return all(any(name not in other for other in others) for name in copies)


def _taking(backlog: Backlog, takes_s: float | None) -> Backlog:
    return backlog if backlog.takes_s == takes_s else msgspec.structs.replace(backlog, takes_s=takes_s)


def _loads(held: Held | None, tier: Tier) -> bool:
    return held is None or (held.failure is None and held.tier.warmth < tier.warmth)


def _rate(engine: Engine) -> float:
    return engine.record.loads_per_s if engine.record is not None else 0.0


def _seconds(copies: int, per_s: float) -> float | None:
    if not copies:
        return 0.0
    return copies / per_s if per_s > 0 else None


def _status(copies: int, seconds: float) -> LoadingStatus:
    if not copies or seconds == math.inf:
        return LoadingStatus(copies=copies)
    whole = math.ceil(seconds)
    return LoadingStatus(copies=copies, eta_seconds=whole, eta=span(whole))
