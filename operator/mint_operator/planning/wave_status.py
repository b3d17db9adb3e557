"""Builds a wave's status: phase, conditions, counts, engines and failures."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice

import msgspec

from mint_contracts.records import EXPIRED, Failure, Mentions, Tier
from mint_contracts.resources import (
    AdapterWaveStatus,
    BaseModelStatus,
    LoadingStatus,
    TrainingStatus,
    WaveCounts,
    WaveEngine,
    WaveFailure,
)
from mint_operator.planning import conditions
from mint_operator.planning.adapters import asked, unread, unreadable
from mint_operator.planning.asking import Ask
from mint_operator.planning.conditions import Finding, status_of, truth
from mint_operator.planning.copies import AWAY, FAILED, LOADING, READY, STARTING, Copy, Standing
from mint_operator.planning.priorities import told
from mint_operator.planning.refusal import ANY_ADAPTERS, NO_NAMES, Refusal
from mint_operator.planning.snapshot import ObservedWave

MOST_FAILURES, FAILURE_MESSAGE_LENGTH = 10, 4096  # of a status, as in the CRD


class WaveFacts(msgspec.Struct, frozen=True, dict=True):
    """What the status of an admitted wave depends on besides the object itself."""

    ask: Ask
    copies: Sequence[Copy]
    base: BaseModelStatus
    loading: LoadingStatus

    @cached_property
    def standing(self) -> Mapping[Standing, Sequence[Copy]]:
        """The copies by standing."""
        found: dict[Standing, list[Copy]] = {READY: [], LOADING: [], FAILED: [], STARTING: [], AWAY: []}
        for copy in self.copies:
            found[copy.standing].append(copy)
        return found

    @cached_property
    def unasked(self) -> Refusal | None:
        """Why the wave may want more than these copies: it was never looked up, nor ready in this generation."""
        wave = self.ask.wave
        last, seen = wave.status.conditions, wave.status.observed_generation
        if not wave.from_map or (seen == wave.meta.generation and status_of(last, "Ready") == "True"):
            return None
        return unread(wave)


def refused_status(wave: ObservedWave, refusal: Refusal, now: float) -> AdapterWaveStatus:
    """Return the status of a wave that is not admitted."""
    adapters = asked(wave)
    wanted = adapters * wave.spec.serve.replicas
    waiting = truth(not refusal.terminal)
    message = refusal.message if refusal.terminal else told(refusal.message, wave)
    findings = [
        Finding("Ready", "False", refusal.reason, message),
        Finding(conditions.ADMITTED, "False", refusal.reason, message),
        Finding(conditions.PLACED, "False", conditions.NOT_ADMITTED, "the wave is not admitted"),
        Finding("Progressing", waiting, refusal.reason, message),
    ]
    findings += conditions.stalled(findings[0], terminal=refusal.terminal)
    return AdapterWaveStatus(
        phase="Failed" if refusal.terminal else "Pending",
        observed_generation=wave.meta.generation,
        conditions=conditions.follow(wave.status.conditions, findings, wave.meta.generation, now),
        counts=WaveCounts(adapters=adapters, wanted=wanted),
        position=refusal.position,
        summary=f"0/{wanted}",
    )


def kept_status(wave: ObservedWave, now: float, why: Failure | None = None) -> AdapterWaveStatus:
    """Return the status of a wave whose own or base's spec cannot be read, or that, by `why`, could not be planned.

    It repeats the last one, but claims nothing about now.
    """
    if wave.defect:
        message = (
            f"{unreadable(wave)}. Until then, what it holds and trains stays unchanged; delete the wave to end that"
        )
        why = Failure("InvalidRequest", message, terminal=True)
    elif why is None:
        base = wave.spec.base_model_ref.name
        message = f"the spec of BaseModel {base} cannot be read (its status says why), so nothing was changed"
        why = Failure("InvalidRequest", message, terminal=True)
    return conditions.kept(_last(wave), why, wave.meta.generation, now)


def unknown_status(wave: ObservedWave, facts: WaveFacts, now: float) -> AdapterWaveStatus:
    """Return the status of an admitted wave while the map is away or lost: the last counts, without claims of now."""
    message = "the placement map cannot be read, so it is unknown where adapters are; engines keep what they hold"
    unknown = conditions.MAP_UNAVAILABLE
    findings = [
        Finding("Ready", "Unknown", unknown, message),
        Finding(conditions.ADMITTED, "True", conditions.ADMITTED, _admitted(wave, facts)),
        Finding(conditions.PLACED, "Unknown", unknown, message),
        Finding("Progressing", "Unknown", unknown, message),
    ]
    last = _last(wave)
    counts = last.counts if last.counts.wanted == facts.ask.copies else WaveCounts()
    return AdapterWaveStatus(
        phase="Degraded" if last.phase in {"Ready", "Degraded"} else last.phase or "Pending",
        observed_generation=wave.meta.generation,
        conditions=conditions.follow(last.conditions, findings, wave.meta.generation, now),
        counts=msgspec.structs.replace(counts, adapters=len(facts.ask.wants), wanted=facts.ask.copies),
        summary=f"{counts.ready}/{facts.ask.copies}",
        engines=last.engines,
        failures=last.failures,
    )


def eta_of(training: TrainingStatus | None, loading: LoadingStatus) -> str:
    """Return the time until the wave's last policy ends, or else until its copies are loaded; "" if unknown."""
    return (training.eta if training is not None else "") or loading.eta


def list_failures(found: Iterable[tuple[str, str, Failure]]) -> list[WaveFailure]:
    """Return the first of these failures, as (adapter, engine, failure), as a status lists them."""
    return [
        WaveFailure(adapter, engine, failure.reason, failure.message[:FAILURE_MESSAGE_LENGTH])
        for adapter, engine, failure in islice(found, MOST_FAILURES)
    ]


def _last(wave: ObservedWave) -> AdapterWaveStatus:
    """Return the wave's last status; an empty one if that says expired, which no longer holds."""
    return wave.status if wave.status.phase != EXPIRED else AdapterWaveStatus()


def wave_status(wave: ObservedWave, facts: WaveFacts, now: float) -> AdapterWaveStatus:
    """Return the status of an admitted wave."""
    counts = _counts(facts)
    verdict = _verdict(facts, counts)
    phase = _phase(wave, facts, verdict)
    findings = [
        verdict,
        Finding(conditions.ADMITTED, "True", conditions.ADMITTED, _admitted(wave, facts)),
        _placed(counts),
        _progressing(facts, verdict, counts),
        *conditions.stalled(verdict, terminal=phase == "Failed" or (verdict.status == "False" and _stuck(facts))),
    ]
    return AdapterWaveStatus(
        phase=phase,
        observed_generation=wave.meta.generation,
        conditions=conditions.follow(wave.status.conditions, findings, wave.meta.generation, now),
        counts=counts,
        summary=f"{counts.ready}/{counts.wanted}",
        engines=_engines(facts),
        failures=list_failures(
            (copy.adapter, copy.engine, copy.failure) for copy in facts.standing[FAILED] if copy.failure is not None
        ),
        loading=facts.loading,
        eta=eta_of(None, facts.loading),
    )


def _admitted(wave: ObservedWave, facts: WaveFacts) -> str:
    message = f"{len(facts.ask.wants)} adapters, {facts.ask.copies} copies, {facts.ask.slots} device slots"
    if wave.expires is not None:
        message += f", until {conditions.stamp(wave.expires)} (spec.serve.ttl)"
    message = told(message, wave)
    return message if wave.unread is None else f"{message}, as last read; {wave.unread.message}"


def _counts(facts: WaveFacts) -> WaveCounts:
    tiers = Counter(copy.tier for copy in facts.copies)
    return WaveCounts(
        adapters=len(facts.ask.wants),
        wanted=facts.ask.copies,
        placed=len(facts.copies),
        ready=len(facts.standing[READY]),
        device=tiers[Tier.DEVICE],
        host=tiers[Tier.HOST],
        disk=tiers[Tier.DISK],
        failed=len(facts.standing[FAILED]),
    )


def _engines(facts: WaveFacts) -> list[WaveEngine]:
    wanted = Counter(copy.engine for copy in facts.copies)
    ready = Counter(copy.engine for copy in facts.standing[READY])
    return [WaveEngine(name=name, wanted=wanted[name], ready=ready[name]) for name in sorted(wanted)]


def _placed(counts: WaveCounts) -> Finding:
    message = f"{counts.placed} of {counts.wanted} copies have an engine"
    if counts.placed == counts.wanted:
        return Finding(conditions.PLACED, "True", conditions.PLACED, message)
    return Finding(
        conditions.PLACED, "False", conditions.WAITING_FOR_ENGINES, f"{message}; the rest wait for engines"
    )


def verdict(facts: WaveFacts) -> Finding:
    """Return the Ready condition of an admitted wave's status."""
    return _verdict(facts, _counts(facts))


def _verdict(facts: WaveFacts, counts: WaveCounts) -> Finding:
    """Return the Ready condition; if False, its reason is what a person should look at first."""
    message = f"{counts.ready} of {counts.wanted} copies ready"
    failed = sorted(facts.standing[FAILED], key=_lasting_first)
    if counts.ready == counts.wanted and facts.unasked is not None:
        why = f"{message}, of those that it had before; {facts.unasked.message}"
        return Finding("Ready", "False", facts.unasked.reason, why, facts.unasked.mentions)
    if counts.ready == counts.wanted:
        return Finding("Ready", "True", conditions.ADAPTERS_READY, message, NO_NAMES)
    first = failed[0] if failed else None
    if first is not None and first.failure is not None:
        cause = f"{first.adapter} on {first.engine}: {first.failure.message}"
        more = f" (and {len(failed) - 1} more failures)" if len(failed) > 1 else ""
        mentions = Mentions((first.adapter,))
        return Finding("Ready", "False", first.failure.reason, f"{message}; {cause}{more}", mentions)
    if base := missing(facts.base):
        return Finding("Ready", "False", base.reason, f"{message}; {base.message}", base.mentions)
    for standing, reason in ((AWAY, conditions.ENGINES_AWAY), (STARTING, conditions.ENGINES_STARTING)):
        if there := facts.standing[standing]:
            names = ", ".join(sorted({copy.engine for copy in there})[:MOST_FAILURES])
            return Finding("Ready", "False", reason, f"{message}; {standing}: {names}", NO_NAMES)
    if counts.placed < counts.wanted:
        return Finding("Ready", "False", conditions.WAITING_FOR_ENGINES, message, NO_NAMES)
    return Finding("Ready", "False", conditions.ADAPTERS_LOADING, message, NO_NAMES)


def _lasting_first(copy: Copy) -> tuple[bool, bool]:
    return conditions.lasting_first(copy.failure) if copy.failure is not None else (True, True)


def missing(base: BaseModelStatus) -> Refusal | None:
    """Return why a base is not ready; None if it is. Only its own status has its progress: it may have many waves."""
    ready = conditions.find(base.conditions, "Ready")
    if ready is None or ready.status == "True":
        return None
    comes_up = ready.reason in conditions.COMING_UP
    detail = "see its status for its progress" if comes_up else ready.message
    message = f"the base model is not ready: {detail}"
    return Refusal(ready.reason, message, terminal=False, mentions=NO_NAMES if comes_up else ANY_ADAPTERS)


def _progressing(facts: WaveFacts, verdict: Finding, counts: WaveCounts) -> Finding:
    residency = facts.ask.wants[0].residency
    message = f"{counts.ready}/{counts.wanted} on {residency}"
    if verdict.status == "True":
        return Finding("Progressing", "False", conditions.SETTLED, message)
    return Finding("Progressing", truth(not _stuck(facts)), verdict.reason, message)


def _stuck(facts: WaveFacts) -> bool:
    """Whether nothing that is left can become ready without a person's action."""
    unready = [copy for copy in facts.copies if copy.standing is not READY]
    if not unready:
        return facts.unasked is not None and facts.unasked.terminal
    return all(copy.failure is not None and copy.failure.terminal for copy in unready)


def _phase(wave: ObservedWave, facts: WaveFacts, verdict: Finding) -> str:
    if verdict.status == "True":
        return "Ready"
    failures = [copy.failure for copy in facts.copies if copy.failure is not None]
    if any(failure.terminal for failure in failures):
        return "Failed"
    once_ready = (
        wave.status.phase in {"Ready", "Degraded"} and wave.status.observed_generation == wave.meta.generation
    )
    lacking = facts.unasked is not None and wave.unread is not None
    return "Degraded" if failures or once_ready or lacking else "Placing"
