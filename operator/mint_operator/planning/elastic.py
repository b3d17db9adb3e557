"""Decides how many engines a base runs, and which are about to be removed or restarted, without a gap in serving.

Pure. Engines are added at once when waves or traffic need them. They are removed, the highest first, only once fewer
have been enough for a while (those beyond the allowed maximum at once), nothing is left to be placed, every policy
that they trained is saved, and every copy that they held is ready elsewhere. Engines beyond the maximum do not wait
for copies that the others, all being ready, cannot load or have no room for. Until then an engine to be removed is
*leaving*, and is given nothing new. An engine whose pod must restart, because the base's revision or settings have
changed, leaves in the same way, one at a time, and comes back. An only engine first gets a second one, if the base
may have two, which goes again afterwards.
"""

from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.records import Place
from mint_operator.placing.board import Load
from mint_operator.placing.placement import Placed
from mint_operator.planning.adapters import Want
from mint_operator.planning.engines import AWAY_GRACE_S, Engine
from mint_operator.planning.sizes import Size

SHRINK_AFTER_S = 300.0  # as long as a HorizontalPodAutoscaler looks back before it scales down
SECOND_WITHIN_S = 600.0  # how long an only engine's restart waits for room for a second: as long as Deployments do
PATIENCE_S = 300.0  # how long an engine's restart waits for copies that others fail to load for now


class Fleet(msgspec.Struct, frozen=True):
    """`count` engines run; `leaving` (ordinals) are to be removed or restarted, and `fewest` are to remain.

    `rolling`: which restarts next; it leaves once all above it are back. `enough_since`: since when fewer would
    do; None: all are needed. `rolling_since`: since when `rolling` has been leaving; None: it is not yet.
    `unplaced_since`: since when there has been no room for any engine above `rolling`; None: there is. `alone`: that
    was so for too long, so an only engine restarts without a second.
    """

    count: int
    fewest: int
    leaving: frozenset[int] = frozenset()
    rolling: int | None = None
    enough_since: float | None = None
    rolling_since: float | None = None
    unplaced_since: float | None = None
    alone: bool = False


class Settled(msgspec.Struct, frozen=True):
    """How many engines to run now, and the partition of the rolling update: ordinals from there on restart.

    `rolling` tells people which engine restarts next and what it waits for; empty if none is to. `shrinking` does so
    for the next to be removed.
    """

    count: int
    partition: int = 0
    rolling: str = ""
    shrinking: str = ""


def fleet(
    needed: int, running: int, engines: Sequence[Engine], settings: str, now: float, before: Fleet | None, most: int
) -> Fleet:
    """Return the fleet, given that `needed` of the `running` engines (0: none was ever made) are needed.

    There may be `most`.
    """
    rolling, leaving = _outdated(engines, settings)  # among all: even those removed soon hold copies
    last = before or Fleet(0, 0)
    of = Fleet(
        running,
        running,
        leaving,
        rolling,
        rolling_since=_rolling_since(rolling, leaving, now, last),
        unplaced_since=_since(last.unplaced_since, now) if _lacks_place(rolling, engines) else None,
        alone=rolling is not None and last.alone,
    )
    if running <= needed:
        if needed == 1 and running == 1 and rolling == 0 and _may_be_answering(engines) and most > 1 and not of.alone:
            return Fleet(2, 2, rolling=rolling)
        return msgspec.structs.replace(of, count=max(needed, 1), fewest=max(needed, 1))
    since = _since(last.enough_since, now)
    of = msgspec.structs.replace(of, enough_since=since)
    if rolling is not None and of.unplaced_since is not None and now - of.unplaced_since >= SECOND_WITHIN_S:
        return msgspec.structs.replace(_smaller(of, max(needed, rolling + 1)), alone=True)
    fewest = needed if now - since >= SHRINK_AFTER_S else min(running, max(needed, most))
    staying, excess = engines[:fewest], engines[fewest:]
    makes_room = any(is_outdated(each, settings) for each in staying)  # others take its copies meanwhile
    answers = _may_be_answering(excess) and not any(each.ready for each in staying)
    return of if makes_room or answers else _smaller(of, fewest)


def _smaller(of: Fleet, fewest: int) -> Fleet:
    """Return the fleet with all engines from `fewest` on leaving."""
    return msgspec.structs.replace(of, fewest=fewest, leaving=of.leaving | frozenset(range(fewest, of.count)))


def _may_be_answering(engines: Sequence[Engine]) -> bool:
    """Whether any answers requests, or may: Redis, or a heartbeat, may be missing for a moment only."""
    return any(each.ready or each.unheard for each in engines)


def _lacks_place(rolling: int | None, engines: Sequence[Engine]) -> bool:
    """Whether there are engines above the one that restarts next, and room for none of them."""
    above = () if rolling is None else engines[rolling + 1 :]
    return bool(above) and all(each.unplaced for each in above)


def _since(last: float | None, now: float) -> float:
    """Return since when something is so, which it last was since `last`; None: it was not."""
    return now if last is None else min(last, now)  # the clock may have been set back since


def _rolling_since(rolling: int | None, leaving: frozenset[int], now: float, last: Fleet) -> float | None:
    """Return since when the engine that restarts next has been leaving; None if it is not yet."""
    if rolling not in leaving:
        return None
    return _since(last.rolling_since if last.rolling == rolling else None, now)


def enlarged(of: Fleet, placed: Placed, most: int) -> Fleet:
    """Return the fleet with one more engine, up to `most`, if a copy found no room but fits an empty engine.

    If an engine is about to be removed, that one is kept instead; the time for which fewer would do starts again.
    """
    if of.fewest >= most or not any(_lacks_room(placed, name) for name in placed.pending):
        return of
    return msgspec.structs.replace(of, count=max(of.count, of.fewest + 1), enough_since=None)


def _lacks_room(placed: Placed, name: str) -> bool:
    task = placed.task
    want = task.wants[name]
    if want.pins or len(placed.records[name].places) >= want.replicas:
        return False
    return Load().room(want.residency, task.sizes.get(name, Size(task.limits.max_rank)), task.limits)


def settled(
    of: Fleet,
    placed: Placed,
    engines: Sequence[Engine],
    away_s: Mapping[str, float],
    saving: Mapping[str, str],
    most: int,
    now: float,
) -> Settled:
    """Return how far the fleet may change now. `away_s`: how long each engine without a heartbeat has been without.

    `saving` has a policy of each engine that has yet to save what it is to train no more.

    Neither count nor partition moves before what the leaving engine holds is ready elsewhere. Copies that fit nowhere
    else or cannot be loaded there do not hold up a rolling update, nor removing engines beyond `most`: neither would
    ever end. A copy that fails elsewhere for now, room for one that leaves an engine beyond `most`, and a policy that
    is being saved are waited for PATIENCE_S.
    """
    count, shrinking = _count(of, placed, engines, saving, most, now)
    partition, rolling = _partition(of, placed, engines, away_s, now)
    return Settled(count, partition, rolling, shrinking)


def _count(
    of: Fleet, placed: Placed, engines: Sequence[Engine], saving: Mapping[str, str], most: int, now: float
) -> tuple[int, str]:
    """Return how many engines keep running, and what the next to be removed waits for."""
    by_name = {engine.name: engine for engine in engines}
    going = {name for name in placed.pending for place in placed.records[name].places if _on(place, of.leaving)}
    patient = of.enough_since is None or now - of.enough_since < SHRINK_AFTER_S + PATIENCE_S
    for count in range(of.count, of.fewest, -1):
        if count - 1 not in of.leaving or (count <= most and not placed.pending <= going):
            return count, ""
        last = engines[count - 1]
        awaited = _unmoved(of, last, placed, by_name)
        if count > most:
            wants = placed.task.wants
            room = patient or not all(engine.ready for engine in engines[: of.fewest])  # may there still be any?
            awaited = {
                name: on
                for name, on in awaited.items()
                if (room if on is None else _may_still_load(by_name[on], wants[name], patient=patient))
            }
        if awaited or (count <= most and placed.given.get(last.name)):
            return count, _once(f"{last.name} is removed", awaited)
        if last.name in saving and patient and not last.lost:
            return count, f"{last.name} is removed once {saving[last.name]} is saved"
    return of.fewest, ""


def _unmoved(of: Fleet, going: Engine, placed: Placed, engines: Mapping[str, Engine]) -> dict[str, str | None]:
    """Return an engine's adapters that are not ready elsewhere, each with the engine that should have it, if any."""
    found: dict[str, str | None] = {}
    for name in placed.given.get(going.name, ()):
        want = placed.task.wants[name]
        staying = [place.engine for place in placed.records[name].places if not _on(place, of.leaving)]
        lacking = [engine for engine in staying if not _has(engines[engine], want)]
        if lacking or len(staying) < want.replicas:
            found[name] = lacking[0] if lacking else None
    return found


def _partition(
    of: Fleet, placed: Placed, engines: Sequence[Engine], away_s: Mapping[str, float], now: float
) -> tuple[int, str]:
    """Return the partition of the rolling update, and what the next engine to restart waits for."""
    if of.rolling is None:
        return 0, ""
    text = f"{engines[of.rolling].name} restarts"
    if of.rolling not in of.leaving:
        above = [engine.name for engine in engines[of.rolling + 1 :] if not engine.ready]
        follows = f"{text} once {above[0]} is ready" if above else f"{text} next"
        if of.unplaced_since is not None and of.enough_since is None:  # else it is removed after a while
            follows += f" (or without that, with spec.engine.replicas.max: {of.rolling + 1})"
        return of.rolling + 1, follows
    patient = of.rolling_since is None or now - of.rolling_since < PATIENCE_S
    awaited = _awaited(of, engines[of.rolling], placed, engines, away_s, patient=patient)
    return of.rolling + bool(awaited), _once(text, awaited)


def _once(text: str, awaited: Mapping[str, str | None]) -> str:
    """Say what is to happen, and after what."""
    if not awaited:
        return text
    name = min(awaited, key=lambda name: (awaited[name] is not None, name))  # what lacks room may never get it
    what = f"{name} is ready on {awaited[name]}" if awaited[name] else f"another engine has room for {name}"
    more = f", and {len(awaited) - 1} adapters more elsewhere" if len(awaited) > 1 else ""
    return f"{text} once {what}{more}"


def _awaited(
    of: Fleet, going: Engine, placed: Placed, engines: Sequence[Engine], away_s: Mapping[str, float], *, patient: bool
) -> dict[str, str]:
    """Return the adapters that would be missing if the engine left now, and where each is about to be ready.

    While `patient`, adapters that fail there for now count, too.
    """
    gone = {name for name, seconds in away_s.items() if seconds > AWAY_GRACE_S}
    if going.name in gone:
        return {}
    able = {engine.name: engine for engine in engines if engine.name not in gone and not engine.failing}
    found = {}
    for name in placed.given.get(going.name, ()):
        if not _may_answer(going, name):
            continue
        want = placed.task.wants[name]
        for place in placed.records[name].places:
            if (
                place.engine in able
                and not _on(place, of.leaving)
                and _may_still_load(able[place.engine], want, patient=patient)
            ):
                found[name] = place.engine
    return found


def _may_answer(engine: Engine, name: str) -> bool:
    """Whether the engine may be serving the adapter: unknown, so yes, if its heartbeat has only just stopped."""
    held = engine.held.get(name)
    return not engine.alive or (engine.ready and held is not None and held.tier.warmth > 0)


def _has(engine: Engine, want: Want) -> bool:
    """Whether an engine is ready and holds what is wanted, warm enough."""
    held = engine.held.get(want.adapter)
    if held is None or held.source != want.source:
        return False
    return engine.ready and held.tier.warmth >= want.residency.warmth


def _may_still_load(engine: Engine, want: Want, *, patient: bool) -> bool:
    """Whether an engine can still be expected to load what is wanted: it has not yet, nor failed for good."""
    if _has(engine, want):
        return False
    held = engine.held.get(want.adapter)
    failure = None if held is None or held.source != want.source else held.failure
    return failure is None or (patient and not failure.terminal)


def _on(place: Place, ordinals: frozenset[int]) -> bool:
    return int(place.engine.rpartition("-")[2]) in ordinals


def _outdated(engines: Sequence[Engine], settings: str) -> tuple[int | None, frozenset[int]]:
    """Return the engine that restarts next, the highest whose pod has other settings, and itself once it may leave.

    It must be held until all above it are back: Kubernetes would continue with it at that moment, and is the first to
    see it.
    """
    back = True
    for engine in reversed(engines):
        if is_outdated(engine, settings):
            return engine.ordinal, frozenset({engine.ordinal} if back else ())
        back = back and engine.ready
    return None, frozenset()


def is_outdated(engine: Engine, settings: str) -> bool:
    """Whether its pod would be made differently now; False if the spec is refused, and so has no `settings`."""
    return bool(engine.pod.settings and settings) and engine.pod.settings != settings
