"""Builds the status of a wave that trains: phase, conditions, and its policies in aggregate."""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.durations import span
from mint_contracts.records import Failure, Mentions
from mint_contracts.resources import (
    AdapterWaveStatus,
    PolicyCounts,
    RewardStatus,
    TrainingStatus,
    WaveCounts,
    WaveEngine,
    WaveFailure,
)
from mint_contracts.training_records import LEASE_TTL_S, Progress, Stage
from mint_contracts.training_reports import eta_s
from mint_operator.planning import conditions
from mint_operator.planning.conditions import Finding, Truth, truth
from mint_operator.planning.engines import Engine
from mint_operator.planning.priorities import told
from mint_operator.planning.refusal import NO_NAMES, Refusal, together
from mint_operator.planning.snapshot import ObservedWave
from mint_operator.planning.wave_status import eta_of, list_failures
from mint_operator.training.standing import PolicyStanding, WaveStanding

MOST_NAMED = 5
DIGITS = 4  # decimals of a reward: more would only make statuses differ
_UNKNOWN = Failure(
    conditions.MAP_UNAVAILABLE,
    "the placement map cannot be read, so it is unknown how policies stand; engines that cannot read it "
    f"either begin no step after {LEASE_TTL_S:.0f} s, and continue when it is back",
    terminal=False,
)


class TrainFacts(msgspec.Struct, frozen=True):
    """What the status depends on besides the object.

    `served` is its status as a wave that serves what it publishes, and `held` the Ready condition of that; `unserved`
    is why none of that is held; `lacking` is why its base is not ready.
    """

    standing: WaveStanding
    engines: Mapping[str, Engine]
    served: AdapterWaveStatus | None
    held: Finding | None
    unserved: Refusal | None
    map_known: bool
    lacking: Refusal | None

    @property
    def refusal(self) -> Refusal | None:
        """Why the rest is not trained."""
        return self.standing.refused

    @property
    def cause(self) -> Refusal | None:
        """The reason that a person should see first if nothing is trained: an unready base has no free slots."""
        why = self.refusal
        if why is None or why.reason != conditions.WAITING_FOR_CAPACITY or self.lacking is None:
            return why
        message, mentions = f"{why.message}; {self.lacking.message}", together(why.mentions, self.lacking.mentions)
        return Refusal(self.lacking.reason, message, terminal=False, mentions=mentions)


def training_status(wave: ObservedWave, facts: TrainFacts, now: float) -> tuple[AdapterWaveStatus, Mentions | None]:
    """Return the status of a wave that trains, and what the message of its Ready condition mentions.

    While nothing is known from the map, as when the operator starts during an outage of Redis, it repeats the last
    status without claims about now.
    """
    if not facts.map_known and not facts.standing.begun and wave.status.phase:
        last = conditions.kept(wave.status, _UNKNOWN, wave.meta.generation, now)
        stalled = [each for each in wave.status.conditions if each.type == conditions.STALLED]
        return msgspec.structs.replace(last, conditions=[*last.conditions, *stalled]), NO_NAMES
    counts, served = _counts(facts), facts.served or (AdapterWaveStatus() if facts.map_known else wave.status)
    phase, verdict = _verdict(facts, counts)
    ready = _ready(facts, phase, verdict)
    findings = [
        ready,
        _admitted(wave, facts, counts),
        _placed(facts, counts),
        Finding("Progressing", truth(phase in {"Training", "Placing", "Queued"}), verdict.reason, verdict.message),
        verdict,
        *conditions.stalled(verdict, terminal=phase == "Failed"),
    ]
    training = _training(facts, counts)
    done = counts.running + counts.complete if phase == "Training" else served.counts.ready
    status = AdapterWaveStatus(
        phase=phase,
        observed_generation=wave.meta.generation,
        conditions=conditions.follow(wave.status.conditions, findings, wave.meta.generation, now),
        counts=served.counts if served.counts.adapters else WaveCounts(adapters=counts.total),
        summary=f"{done}/{counts.total}",
        engines=_engines(facts),
        failures=_failures(facts.standing),
        training=training,
        loading=served.loading,
        eta=eta_of(training, served.loading),
    )
    return status, ready.mentions


def _verdict(facts: TrainFacts, counts: PolicyCounts) -> tuple[str, Finding]:
    """Return the phase and the Complete condition."""
    standing, refusal = facts.standing, facts.cause
    ended = f"{counts.complete} of {counts.total} policies complete"
    others = {"failed": counts.failed, "cancelled": counts.cancelled}
    ended += "".join(f", {count} {what}" for what, count in others.items() if count)
    if standing.over:
        if standing.failed:
            return "Failed", _failed(standing, ended)
        if standing.train.cancelled and counts.cancelled:
            return "Cancelled", _complete("False", conditions.TRAINING_CANCELLED, ended)
        return "Complete", _complete("True", conditions.TRAINING_COMPLETE, ended)
    if refusal is not None:
        phase = "Failed" if refusal.terminal else "Queued"
        return phase, _complete("False", refusal.reason, refusal.message, refusal.mentions)
    if standing.failed:
        return "Training", _failed(standing, ended)
    if standing.train.paused and not any(_runs(policy) for policy in standing.policies):
        message = f"{ended}; set spec.train.paused to false to resume"
        return "Paused", _complete("False", conditions.TRAINING_PAUSED, message)
    if any(policy.progress for policy in standing.policies):
        return "Training", _complete("False", conditions.TRAINING, ended)
    lacking = facts.lacking
    if lacking is None:
        return "Placing", _complete("False", conditions.POLICIES_LOADING, ended)
    return "Placing", _complete("False", lacking.reason, f"{ended}; {lacking.message}", lacking.mentions)


def _complete(status: Truth, reason: str, message: str, mentions: Mentions | None = NO_NAMES) -> Finding:
    return Finding(conditions.COMPLETE, status, reason, message, mentions)


def _ready(facts: TrainFacts, phase: str, verdict: Finding) -> Finding:
    """Return the Ready condition: all policies that should train do or, after the end, are served as asked."""
    if not facts.map_known:
        return Finding("Ready", "Unknown", _UNKNOWN.reason, _UNKNOWN.message, NO_NAMES)
    if facts.standing.over and facts.unserved is not None:
        return Finding("Ready", "False", facts.unserved.reason, facts.unserved.message, facts.unserved.mentions)
    if facts.standing.over and facts.held is not None and facts.served is not None and facts.served.counts.wanted:
        return facts.held
    if phase != "Training":
        return Finding("Ready", truth(phase == "Complete"), verdict.reason, verdict.message, verdict.mentions)
    idle = [each for each in facts.standing.policies if not _trains(each, facts)]
    if stopping := _stopping(facts):
        return Finding("Ready", truth(not idle), conditions.TRAINING, stopping, NO_NAMES)
    if not idle:
        message = f"{len(facts.standing.policies)} policies are training or have ended"
        return Finding("Ready", "True", conditions.TRAINING, message, NO_NAMES)
    message = f"{len(idle)} of {len(facts.standing.policies)} policies are not training yet"
    away = sorted({each.engine for each in idle if each.assignment and not _alive(each, facts)})[:MOST_NAMED]
    if away:
        starting = all(name in facts.engines and facts.engines[name].starting for name in away)
        word, reason = ("starting", conditions.ENGINES_STARTING) if starting else ("away", conditions.ENGINES_AWAY)
        return Finding("Ready", "False", reason, f"{message}; {word}: {', '.join(away)}", NO_NAMES)
    coming = sorted({each.engine for each in idle if each.assignment and not _answers(each, facts)})[:MOST_NAMED]
    if coming:
        message = f"{message}; not ready: {', '.join(coming)}"
        return Finding("Ready", "False", conditions.BASE_LOADING, message, NO_NAMES)
    why = facts.standing.unknown
    if why is not None and any(each.assignment is None for each in idle):
        return Finding("Ready", "False", why.reason, f"{message}; {why.message}", why.mentions)
    return Finding("Ready", "False", conditions.POLICIES_LOADING, message, NO_NAMES)


def _stopping(facts: TrainFacts) -> str:
    """Say that policies are still to be paused or cancelled, as the wave now asks; "" if none is."""
    standing = facts.standing
    still = sum(not standing.ended(each) and _trains(each, facts) for each in standing.policies)
    if not still or not (standing.train.paused or standing.train.cancelled):
        return ""
    what = "cancelled" if standing.train.cancelled else "paused"
    return f"{still} of {len(standing.policies)} policies are still training; each is {what} after its present step"


def _trains(policy: PolicyStanding, facts: TrainFacts) -> bool:
    """Whether it has ended or is being trained now, as reported by the start of its engine that has the lease."""
    if facts.standing.ended(policy):
        return True
    lease, progress = policy.assignment, policy.progress
    if lease is None or progress is None or progress.stage is not Stage.RUNNING or progress.lease != lease.lease:
        return False
    engine = facts.engines.get(policy.engine)
    restarted = engine is not None and engine.record is not None and engine.record.incarnation != lease.incarnation
    return _answers(policy, facts) and not restarted


def _runs(policy: PolicyStanding) -> bool:
    """Whether it trains by the last report, which may be from an engine that has ended since."""
    return policy.stage is Stage.RUNNING and policy.assignment is not None


def _answers(policy: PolicyStanding, facts: TrainFacts) -> bool:
    """Whether its engine is ready; assumed while the map cannot be read."""
    engine = facts.engines.get(policy.engine)
    return not facts.map_known or (engine is not None and engine.ready)


def _alive(policy: PolicyStanding, facts: TrainFacts) -> bool:
    engine = facts.engines.get(policy.engine)
    return engine is not None and engine.alive


def _admitted(wave: ObservedWave, facts: TrainFacts, counts: PolicyCounts) -> Finding:
    refusal = facts.refusal
    if refusal is not None:
        message = refusal.message if refusal.terminal else told(refusal.message, wave)
        return Finding(conditions.ADMITTED, "False", refusal.reason, message)
    message = f"{counts.total} policies, {len(facts.standing.wants_slot)} device slots for training"
    return Finding(conditions.ADMITTED, "True", conditions.ADMITTED, told(message, wave))


def _placed(facts: TrainFacts, counts: PolicyCounts) -> Finding:
    wanting = frozenset(facts.standing.wants_slot)
    needy = [each for each in facts.standing.policies if each.name in wanting]
    placed = sum(each.assignment is not None for each in needy)
    message = f"{placed} of {len(needy)} policies that train have an engine"
    if facts.refusal is not None and needy:
        return Finding(conditions.PLACED, "False", conditions.NOT_ADMITTED, "the wave is not admitted")
    if placed == len(needy):
        return Finding(conditions.PLACED, truth(bool(counts.total)), conditions.PLACED, message)
    return Finding(
        conditions.PLACED, "False", conditions.WAITING_FOR_ENGINES, f"{message}; the rest wait for engines"
    )


def _counts(facts: TrainFacts) -> PolicyCounts:
    policies = facts.standing.policies
    tally = Counter(_stage(policy, facts) for policy in policies)
    return PolicyCounts(
        total=len(policies),
        waiting=tally[Stage.LOADING],
        running=tally[Stage.RUNNING],
        paused=tally[Stage.PAUSED],
        complete=tally[Stage.COMPLETE],
        cancelled=tally[Stage.CANCELLED],
        failed=tally[Stage.FAILED],
    )


def _stage(policy: PolicyStanding, facts: TrainFacts) -> Stage:
    """Return the stage a policy counts as; one that is to continue after all, or is not trained now, waits."""
    standing = facts.standing
    if policy.ended(standing.train.steps) and policy.stage is not None:
        return policy.stage
    if standing.ended(policy):
        return Stage.CANCELLED
    if policy.rests and standing.train.paused:  # even if its engine has forgotten it
        return Stage.PAUSED
    return Stage.RUNNING if _trains(policy, facts) else Stage.LOADING


def _training(facts: TrainFacts, counts: PolicyCounts) -> TrainingStatus:
    standing = facts.standing
    reported = [policy.progress for policy in standing.policies if policy.progress is not None]
    going = [each for each in standing.policies if each.stage not in {Stage.FAILED, Stage.CANCELLED}]
    step, steps = min((each.step for each in going or standing.policies), default=0), standing.train.steps
    eta = eta_s(standing.train, [_paced(policy, facts) for policy in standing.policies])
    return TrainingStatus(
        step=step,
        steps=steps,
        progress=f"{step}/{steps}",
        reward=RewardStatus(
            last=_mean([each.reward_mean for each in reported]),
            recent=_mean([each.reward_recent for each in reported]),
            best=_mean([each.reward_best for each in reported]),
            evaluation=_mean([each.evaluation for each in reported]),
        ),
        tokens=sum(each.tokens for each in reported),
        eta_seconds=eta,
        eta="" if eta is None else span(eta),
        policies=counts,
    )


def _paced(policy: PolicyStanding, facts: TrainFacts) -> Progress | None:
    """Return a policy's progress for the estimate of its end; the pace of one that does not train now is ignored."""
    if policy.progress is None or not _runs(policy) or _trains(policy, facts):
        return policy.progress
    return msgspec.structs.replace(policy.progress, stage=Stage.LOADING)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), DIGITS) if known else None


def _engines(facts: TrainFacts) -> list[WaveEngine]:
    given = [each for each in facts.standing.policies if each.assignment is not None]
    wanted = Counter(each.engine for each in given)
    ready = Counter(each.engine for each in given if _trains(each, facts))
    return [WaveEngine(name=name, wanted=wanted[name], ready=ready[name]) for name in sorted(wanted)]


def _failures(standing: WaveStanding) -> list[WaveFailure]:
    return list_failures(
        (policy.name, policy.engine, policy.progress.failure)
        for policy in standing.policies
        if policy.progress is not None and policy.progress.failure is not None
    )


def _failed(standing: WaveStanding, message: str) -> Finding:
    """Return the Complete condition of a wave with too many failed policies, with the first failure."""
    first = next((each for each in standing.policies if each.stage is Stage.FAILED), None)
    if first is None:
        return _complete("False", conditions.POLICIES_FAILED, message)
    message = f"{message}; {first.name}: {_failure(first.progress)}"
    return _complete("False", conditions.POLICIES_FAILED, message, Mentions((first.name,)))


def _failure(progress: Progress | None) -> str:
    return progress.failure.message if progress is not None and progress.failure is not None else "failed"
