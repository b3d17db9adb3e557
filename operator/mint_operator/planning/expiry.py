"""Waves whose ttl has ended: to all others as if they were deleted, with a status that says so. Pure."""

from collections.abc import Iterable

from mint_contracts.resources import AdapterWaveStatus, WaveCounts
from mint_operator.planning import conditions
from mint_operator.planning.conditions import Finding
from mint_operator.planning.snapshot import ObservedWave


def due(waves: Iterable[ObservedWave], now: float) -> float | None:
    """When the next of them expires, in seconds since 1970; None: none will."""
    return min((wave.expires for wave in waves if wave.expires is not None and wave.expires > now), default=None)


def expired_status(wave: ObservedWave, now: float) -> AdapterWaveStatus:
    """The status of a wave that has expired: it is complete, and nothing is held for it."""
    given, expired = wave.spec.adapters, conditions.EXPIRED
    ended = conditions.stamp(wave.expires or now)
    said = (
        f"its ttl of {wave.spec.serve.ttl} ended at {ended}, and nothing is held for it since; raise or remove "
        "spec.serve.ttl to have its adapters held again, or delete the wave"
    )
    findings = [
        Finding("Ready", "False", expired, said),
        Finding(conditions.ADMITTED, "False", expired, said),
        Finding(conditions.PLACED, "False", expired, said),
        Finding("Progressing", "False", expired, said),
        Finding(conditions.COMPLETE, "True", expired, said),
    ]
    adapters = len(given.names) or len(given.sources) or wave.status.counts.adapters
    found = AdapterWaveStatus(
        phase=expired,
        observed_generation=wave.meta.generation,
        conditions=conditions.follow(wave.status.conditions, findings, wave.meta.generation, now),
        counts=WaveCounts(adapters=adapters),
        summary="0/0",
    )
    return wave.status if wave.status == found else found  # the same object, so that its writer need not look
