"""How high a base lets each namespace's waves rank: priority comes before every other rule of a wave's turn."""

import msgspec

from mint_operator.planning.snapshot import ObservedBase, ObservedWave


def ranked(wave: ObservedWave, base: ObservedBase) -> ObservedWave:
    """Return the wave with at most the priority that the base allows its namespace; the same object each time."""
    mine = (each for each in base.spec.tenants if each.namespace == wave.meta.namespace)
    most = next((each.max_priority for each in mine), None)
    if most is None or wave.spec.priority <= most:
        return wave
    if most not in wave.lowered:
        spec = msgspec.structs.replace(wave.spec, priority=most)
        wave.lowered[most] = msgspec.structs.replace(wave, spec=spec, too_high=True)
    return wave.lowered[most]


def told(message: str, wave: ObservedWave) -> str:
    """Return a condition's message, which also says if the wave ranks lower than it asks."""
    if not wave.too_high:
        return message
    most = f"the most that spec.tenants of the BaseModel allows namespace {wave.meta.namespace}"
    return f"{message}; spec.priority counts as {wave.spec.priority}, {most}"
