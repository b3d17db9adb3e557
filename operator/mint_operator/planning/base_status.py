"""Builds a base model's status: phase, conditions and counts, from its engines' reports and their pods."""

from collections.abc import Sequence

import msgspec

from mint_contracts.listing import and_more
from mint_contracts.records import Failure
from mint_contracts.resources import BaseModelStatus, EngineCounts, LoadingStatus, SlotCounts, TierCounts
from mint_operator.planning import conditions
from mint_operator.planning.conditions import Finding, truth
from mint_operator.planning.engines import Engine
from mint_operator.planning.loading_progress import is_copying, sentence, with_base
from mint_operator.planning.rolling import Roll
from mint_operator.planning.snapshot import ObservedBase

MOST_NAMED = 5
ALONE = "no other engine can answer meanwhile"
NOT_ALONE = " (with spec.engine.replicas.max: 2, a second one takes over first)"


class BaseFacts(msgspec.Struct, frozen=True):
    """What the status of a base depends on besides the object itself."""

    engines: Sequence[Engine]
    selector: str
    redis_ok: bool
    refusal: Failure | None  # the spec cannot be used, or the API server refused objects
    loading: LoadingStatus = LoadingStatus()
    roll: Roll | None = None  # while engines restart with the latest spec
    shrinking: str = ""  # which engine is removed next, and what it waits for


def base_status(base: ObservedBase, facts: BaseFacts, now: float) -> BaseModelStatus:
    """Return the status of a base. Ready means that at least `replicas.min` engines answer requests.

    Also that one fewer does, and not none, while that one restarts for a roll: what it held is held elsewhere.

    While the map is away the last counts stay: engines hold what they held.
    """
    engines = facts.engines
    ready = [engine for engine in engines if _ready(engine, facts)]
    counts = EngineCounts(desired=len(engines), ready=len(ready), selector=facts.selector)
    verdict = _with_catalog(base, _verdict(base, facts, len(ready)))
    progressing = _progressing(verdict, facts, len(ready))
    findings = [
        verdict,
        progressing,
        _source(facts, bool(ready)),
        _engines(facts, len(ready)),
        *(_stalled(base, facts, verdict, progressing) or _reconciling(facts)),
    ]
    last = base.status
    slots, adapters = _held(engines) if facts.redis_ok else (last.slots, last.adapters)
    return BaseModelStatus(
        phase=_phase(base, facts, verdict, len(ready)),
        observed_generation=base.meta.generation,
        conditions=conditions.follow(base.status.conditions, findings, base.meta.generation, now),
        engines=counts,
        slots=slots,
        adapters=adapters,
        loading=with_base(facts.loading, engines) if facts.redis_ok else last.loading,
    )


def _held(engines: Sequence[Engine]) -> tuple[SlotCounts, TierCounts]:
    """Return what engines report that they hold."""
    device, host, disk = (sum(counts) for counts in zip(*[engine.tiers for engine in engines], strict=True))
    ready = [(engine.record, engine.tiers[0]) for engine in engines if engine.record is not None and engine.ready]
    used = sum(max(record.slots_used, held) for record, held in ready)  # slots are reported later, by heartbeats
    total = sum(record.slots_total for record, _ in ready)
    return SlotCounts(used=used, total=total), TierCounts(device=device, host=host, disk=disk)


def _ready(engine: Engine, facts: BaseFacts) -> bool:
    """Whether an engine is ready; without Redis, only the pod's readiness is known."""
    return engine.ready if facts.redis_ok else engine.pod.ready and not engine.pod.terminating


def _verdict(base: ObservedBase, facts: BaseFacts, ready: int) -> Finding:
    desired, needed = len(facts.engines), base.spec.engine.replicas.min
    count = f"{ready} of {desired} engines ready"
    refusal = facts.refusal
    if refusal is not None and (base.defect or refusal.reason == conditions.APPLY_FAILED) and ready >= needed:
        could = "read" if base.defect else "applied"
        message = f"{count} with the previous spec; the latest one could not be {could}: {refusal.message}"
        return Finding("Ready", "True", refusal.reason, message)
    if refusal is not None:
        return Finding("Ready", "False", refusal.reason, refusal.message)
    if not facts.redis_ok:
        why = "Redis does not answer, or takes no writes"
        message = f"{why}, so it is unknown what engines hold; {ready} of {desired} pods are ready"
        return Finding("Ready", "Unknown", conditions.MAP_UNAVAILABLE, message)
    if ready >= needed:
        return Finding("Ready", "True", conditions.ENGINES_READY, _with_troubles(count, facts))
    if _rolls(facts) and facts.roll is not None:
        text = f"{count}, {needed} needed; restarting with the latest spec: {', '.join(facts.roll.away)}"
        if not ready:
            text += f"; {ALONE}" + (NOT_ALONE if base.spec.engine.replicas.max == 1 else "")
        return Finding("Ready", truth(ready > 0), conditions.ROLLING_UPDATE, _with_troubles(text, facts))
    reason, _ = _cause(facts)
    return Finding("Ready", "False", reason, _with_troubles(f"{count}, {needed} needed", facts))


def _rolls(facts: BaseFacts) -> bool:
    """Whether a roll is under way, and all that is not ready is explained by it."""
    return facts.redis_ok and facts.refusal is None and facts.roll is not None and facts.roll.planned


def _with_catalog(base: ObservedBase, verdict: Finding) -> Finding:
    """Prepend why the base has no catalog to the verdict; its engines still serve everything else."""
    lacking = base.without_catalog
    if lacking is None:
        return verdict
    reason = lacking.reason if verdict.reason == conditions.ENGINES_READY else verdict.reason
    return msgspec.structs.replace(verdict, reason=reason, message=f"{lacking.message}; {verdict.message}")


def _cause(facts: BaseFacts) -> tuple[str, bool]:
    """Return the reason why engines are not ready, failures first, and whether none of them can become ready."""
    waiting = [engine for engine in facts.engines if not engine.ready]
    failures = [engine.failure for engine in waiting if engine.failure is not None]
    failures.sort(key=conditions.lasting_first)
    if failures:
        return failures[0].reason, len(failures) == len(waiting) and all(failure.terminal for failure in failures)
    if any(is_copying(engine) for engine in waiting):
        return conditions.COPYING_BASE, False
    if any(engine.alive for engine in waiting):
        return conditions.BASE_LOADING, False
    return conditions.ENGINES_STARTING, False


def _with_troubles(text: str, facts: BaseFacts) -> str:
    """Add to `text` what is known of engines that are not ready: first failures, each once, then others' progress."""
    waiting = [engine for engine in facts.engines if not engine.ready]
    failing: dict[Failure, list[str]] = {}
    for engine in waiting:
        if engine.failure:
            failing.setdefault(engine.failure, []).append(engine.name)
    troubles = [f"{_several(names)}: {failure.reason}: {failure.message}" for failure, names in failing.items()]
    troubles += [word for engine in waiting if (word := sentence(engine) or _unheard(engine))]
    more = [f"and {len(troubles) - MOST_NAMED} more"] if len(troubles) > MOST_NAMED else []
    return "; ".join([text, *troubles[:MOST_NAMED], *more])


def _several(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + and_more(names, MOST_NAMED)


def _unheard(engine: Engine) -> str:
    """Say that an engine's pod is ready but Redis has no report of it; "" if that is not the case."""
    if not engine.unheard or engine.failure is not None:
        return ""
    return f"engine {engine.name}: its pod is ready, but nothing is heard of it through Redis; its log says why"


def _progressing(verdict: Finding, facts: BaseFacts, ready: int) -> Finding:
    desired = len(facts.engines)
    message, roll = f"{ready} of {desired} engines ready", facts.roll
    if verdict.status == "Unknown" or facts.refusal is not None:
        return Finding("Progressing", "False", verdict.reason, message)
    if ready == desired and roll is None and not facts.shrinking:
        return Finding("Progressing", "False", conditions.SETTLED, message)
    if roll is not None:
        message = f"{roll.updated} of {desired} engines updated, {ready} ready"
    follows = "" if roll is None else roll.follows
    message = "; ".join([message, *[each for each in (follows, facts.shrinking) if each]])
    if ready == desired or _rolls(facts):
        reason = conditions.SCALING_DOWN if roll is None else conditions.ROLLING_UPDATE
        return Finding("Progressing", "True", reason, _with_troubles(message, facts))
    reason, terminal = _cause(facts)
    return Finding("Progressing", truth(not terminal), reason, _with_troubles(message, facts))


def _stalled(base: ObservedBase, facts: BaseFacts, verdict: Finding, progressing: Finding) -> list[Finding]:
    """Say what of the spec is not carried out until a person acts, although engines may serve; else nothing."""
    refusal, lacking = facts.refusal, base.without_catalog
    rests = progressing.status == "False" and progressing.reason != conditions.SETTLED
    found = conditions.stalled(verdict, terminal=refusal is not None and refusal.terminal)
    found += conditions.stalled(progressing, terminal=refusal is None and verdict.status != "Unknown" and rests)
    if lacking is not None:
        catalog = Finding("Ready", "False", lacking.reason, lacking.message)
        found += conditions.stalled(catalog, terminal=lacking.terminal)
    return found[:1]


def _reconciling(facts: BaseFacts) -> list[Finding]:
    """Say that engines do not all run with the latest spec yet: kstatus takes what is Ready for current otherwise."""
    refusal = facts.refusal
    if refusal is not None and not refusal.terminal:
        return [Finding(conditions.RECONCILING, "True", refusal.reason, refusal.message)]
    roll = facts.roll
    if roll is not None:
        message = roll.follows or f"{roll.updated} of {len(facts.engines)} engines updated"
        return [Finding(conditions.RECONCILING, "True", conditions.ROLLING_UPDATE, message)]
    return []


def _source(facts: BaseFacts, any_ready: bool) -> Finding:
    failures = [engine.record.failure for engine in facts.engines if engine.record and engine.record.failure]
    if facts.refusal is not None and facts.refusal.reason != conditions.APPLY_FAILED:
        return Finding("SourceReady", "False", facts.refusal.reason, facts.refusal.message)
    if failures:
        return Finding("SourceReady", "False", failures[0].reason, failures[0].message)
    if any_ready:
        return Finding("SourceReady", "True", conditions.BASE_LOADED, "engines have loaded the base")
    return Finding("SourceReady", "Unknown", conditions.BASE_LOADING, "no engine has loaded the base yet")


def _engines(facts: BaseFacts, ready: int) -> Finding:
    desired = len(facts.engines)
    message = _with_troubles(f"{ready} of {desired} engines ready", facts)
    if facts.refusal is not None and facts.refusal.reason == conditions.APPLY_FAILED:
        return Finding("EnginesReady", "False", facts.refusal.reason, facts.refusal.message)
    if ready == desired:
        return Finding("EnginesReady", "True", conditions.ENGINES_READY, message)
    if not facts.redis_ok:
        return Finding("EnginesReady", "Unknown", conditions.MAP_UNAVAILABLE, message)
    return Finding("EnginesReady", "False", _cause(facts)[0], message)


def _phase(base: ObservedBase, facts: BaseFacts, verdict: Finding, ready: int) -> str:
    if base.without_catalog is None and _rolls(facts):
        return "Rolling"
    if verdict.status == "True":
        return "Degraded" if facts.refusal or facts.roll or base.without_catalog else "Ready"
    if facts.refusal is not None:
        return "Failed" if facts.refusal.terminal and not ready else "Degraded" if ready else "Pending"
    served = base.status.phase in {"Ready", "Rolling", "Degraded"}
    if ready or (served and not _cause(facts)[1]):
        return "Degraded"
    if facts.redis_ok and _cause(facts)[1]:
        return "Failed"
    return "Loading" if any(engine.alive for engine in facts.engines) else "Pending"
