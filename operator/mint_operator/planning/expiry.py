"""Waves whose ttl has ended: treated as if they were deleted, but with a status that says that they expired. Pure."""

from collections.abc import Iterable

from mint_contracts.records import EXPIRED
from mint_contracts.resources import AdapterWaveStatus, WaveCounts
from mint_operator.planning import conditions
from mint_operator.planning.conditions import Finding
from mint_operator.planning.snapshot import ObservedWave


def due(waves: Iterable[ObservedWave], now: float) -> float | None:
    """Return when the next of the waves expires, in seconds since 1970; None if none will."""
    return min((wave.expires for wave in waves if wave.expires is not None and wave.expires > now), default=None)


def expired_status(wave: ObservedWave, now: float) -> AdapterWaveStatus:
    """Return the status of a wave that has expired: it is complete, and nothing is held for it."""
    message = ending(wave)
    findings = [
        Finding("Ready", "False", EXPIRED, message),
        Finding(conditions.ADMITTED, "False", EXPIRED, message),
        Finding(conditions.PLACED, "False", EXPIRED, message),
        Finding("Progressing", "False", EXPIRED, message),
        Finding(conditions.COMPLETE, "True", EXPIRED, message),
    ]
    found = AdapterWaveStatus(
        phase=EXPIRED,
        observed_generation=wave.meta.generation,
        conditions=conditions.follow(wave.status.conditions, findings, wave.meta.generation, now),
        counts=WaveCounts(adapters=named(wave)),
        summary="0/0",
    )
    return wave.status if wave.status == found else found  # the same object, so that it is not written again


def ending(wave: ObservedWave) -> str:
    """Say when and why an expired wave ended, and what that means."""
    ended = conditions.stamp(wave.expires or 0.0)
    return (
        f"expired at {ended} (spec.serve.ttl {wave.spec.serve.ttl}); its adapters are no longer held for it and load "
        "only on demand or for other waves. Raise or remove spec.serve.ttl to hold them again, or delete the wave"
    )


def named(wave: ObservedWave) -> int:
    """Return how many adapters an expired wave asked for; by selector or manifest, as many as were last found."""
    given = wave.spec.adapters
    return len(given.names) or len(given.sources) or wave.status.counts.adapters
