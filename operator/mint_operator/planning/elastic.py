"""How many engines a base runs, and which of them are about to go: elasticity and rolling updates, without a gap.

Pure. Engines are added at once when waves or traffic need them. They go, the highest first, only when fewer have been
enough for a while, nothing is left to be placed, and every copy that they held is ready elsewhere (or, of engines
beyond the most that there may be, cannot be): an engine that is to go is *leaving* until then, and is given nothing
new. An engine whose pod is to start anew, because the base's revision or settings changed, leaves in the same way,
one at a time, and comes back.
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
PATIENCE_S = 300.0  # an engine that is to start anew waits so long for copies that others fail to load for now


class Fleet(msgspec.Struct, frozen=True):
    """`count` engines run, of which `leaving` (ordinals) are to go or to start anew, and `fewest` are to stay.

    `rolling`: which restarts next; it leaves once all above it are back. `enough_since`: since when fewer would
    do; None: as many are needed. `rolling_since`: since when `rolling` leaves; None: it does not yet.
    """

    count: int
    fewest: int
    leaving: frozenset[int] = frozenset()
    rolling: int | None = None
    enough_since: float | None = None
    rolling_since: float | None = None


class Settled(msgspec.Struct, frozen=True):
    """How many engines to run now, and the partition of the rolling update: ordinals from there on start anew.

    `rolling` says which does so next and what it waits for, for people; empty when none is to. `shrinking` says the
    same of the next to go.
    """

    count: int
    partition: int = 0
    rolling: str = ""
    shrinking: str = ""


def fleet(
    needed: int, running: int, engines: Sequence[Engine], settings: str, now: float, before: Fleet | None
) -> Fleet:
    """The fleet that `needed` engines make of the `running` ones (0: none was ever made)."""
    rolling, leaving = _outdated(engines, settings)  # of all that run: those that may go soon still hold copies
    began = _rolling_since(rolling, leaving, now, before)
    if running <= needed:
        return Fleet(max(needed, 1), max(needed, 1), leaving, rolling, rolling_since=began)
    last = before.enough_since if before is not None else None
    since = now if last is None else min(last, now)  # the clock may have been put back since
    makes_room = any(is_outdated(each, settings) for each in engines[:needed])  # others take its copies meanwhile
    if now - since < SHRINK_AFTER_S or makes_room:
        return Fleet(running, running, leaving, rolling, since, began)
    return Fleet(running, needed, leaving | frozenset(range(needed, running)), rolling, since, began)


def _rolling_since(rolling: int | None, leaving: frozenset[int], now: float, before: Fleet | None) -> float | None:
    """Since when the engine leaves that restarts next."""
    if rolling not in leaving:
        return None
    last = before.rolling_since if before is not None and before.rolling == rolling else None
    return now if last is None else min(last, now)


def enlarged(of: Fleet, placed: Placed, most: int) -> Fleet:
    """The fleet with an engine more, of at most `most`, where a copy has found no room that an empty one has.

    Engines that are about to go are kept for it instead; that fewer would do is then looked at anew.
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
    of: Fleet, placed: Placed, engines: Sequence[Engine], away_s: Mapping[str, float], most: int, now: float
) -> Settled:
    """How far the fleet may go now. `away_s` is how long each engine without a heartbeat has been without one.

    Neither count nor partition moves on before what the leaving engine holds is ready elsewhere. What fits nowhere
    else, or cannot be had there, does not hold up a rolling update, which would never end; nor, where it cannot be
    had, engines beyond the `most` that there may be. Where it may still come, and fails for now, it is waited for
    PATIENCE_S.
    """
    count, shrinking = _count(of, placed, engines, most, now)
    partition, rolling = _partition(of, placed, engines, away_s, now)
    return Settled(count, partition, rolling, shrinking)


def _count(of: Fleet, placed: Placed, engines: Sequence[Engine], most: int, now: float) -> tuple[int, str]:
    """How many engines run on, and what the next to go waits for."""
    by_name = {engine.name: engine for engine in engines}
    going = {name for name in placed.pending for place in placed.records[name].places if _on(place, of.leaving)}
    patient = of.enough_since is None or now - of.enough_since < SHRINK_AFTER_S + PATIENCE_S
    for count in range(of.count, of.fewest, -1):
        if count - 1 not in of.leaving or not placed.pending <= going:
            return count, ""
        last = engines[count - 1]
        awaited = _clinging(of, last, placed, by_name)
        if count > most:
            wants = placed.task.wants
            awaited = {
                name: on
                for name, on in awaited.items()
                if on is None or _comes(by_name[on], wants[name], patient=patient)
            }
        if awaited or (count <= most and placed.given.get(last.name)):
            return count, _once(f"{last.name} is removed", awaited)
    return of.fewest, ""


def _clinging(of: Fleet, going: Engine, placed: Placed, engines: Mapping[str, Engine]) -> dict[str, str | None]:
    """Adapters of an engine that is to go which are not ready elsewhere, and where they are to be; None: nowhere."""
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
    """The partition of the rolling update, and what the next to start anew waits for."""
    if of.rolling is None:
        return 0, ""
    text = f"{engines[of.rolling].name} restarts"
    if of.rolling not in of.leaving:
        return of.rolling + 1, f"{text} next"
    patient = of.rolling_since is None or now - of.rolling_since < PATIENCE_S
    awaited = _awaited(of, engines[of.rolling], placed, engines, away_s, patient=patient)
    return of.rolling + bool(awaited), _once(text, awaited)


def _once(text: str, awaited: Mapping[str, str | None]) -> str:
    """What is to happen, and after what."""
    if not awaited:
        return text
    name = min(awaited)
    more = f", and {len(awaited) - 1} adapters more elsewhere" if len(awaited) > 1 else ""
    return f"{text} once {name} is ready on {awaited[name] or 'another engine'}{more}"


def _awaited(
    of: Fleet, going: Engine, placed: Placed, engines: Sequence[Engine], away_s: Mapping[str, float], *, patient: bool
) -> dict[str, str]:
    """Adapters that would be missed if the engine went now, and where each is about to be ready.

    While `patient` those count that fail there for now.
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
                and _comes(able[place.engine], want, patient=patient)
            ):
                found[name] = place.engine
    return found


def _may_answer(engine: Engine, name: str) -> bool:
    """Whether the engine may hold the adapter: of one whose heart has only just stopped it is not known."""
    held = engine.held.get(name)
    return not engine.alive or (engine.ready and held is not None and held.tier.warmth > 0)


def _has(engine: Engine, want: Want) -> bool:
    """Whether an engine answers for what is wanted, as warm as it is wanted."""
    held = engine.held.get(want.adapter)
    if held is None or held.source != want.source:
        return False
    return engine.ready and held.tier.warmth >= want.residency.warmth


def _comes(engine: Engine, want: Want, *, patient: bool) -> bool:
    """Whether an engine is still about to hold what is wanted: it does not yet, and has not refused it for good."""
    if _has(engine, want):
        return False
    held = engine.held.get(want.adapter)
    failure = None if held is None or held.source != want.source else held.failure
    return failure is None or (patient and not failure.terminal)


def _on(place: Place, ordinals: frozenset[int]) -> bool:
    return int(place.engine.rpartition("-")[2]) in ordinals


def _outdated(engines: Sequence[Engine], settings: str) -> tuple[int | None, frozenset[int]]:
    """The engine that restarts next, the highest whose pod has other settings; and itself once it may leave.

    Until all above it are back it must be held: Kubernetes would go on to it the moment that they are, and sees that
    before anybody else does.
    """
    back = True
    for engine in reversed(engines):
        if is_outdated(engine, settings):
            return engine.ordinal, frozenset({engine.ordinal} if back else ())
        back = back and engine.ready
    return None, frozenset()


def is_outdated(engine: Engine, settings: str) -> bool:
    """Whether its pod would be made otherwise now; none would be where the spec is refused, and has no settings."""
    return bool(engine.pod.settings and settings) and engine.pod.settings != settings
