"""The adapters that a training wave publishes, as it wants them served.

A published revision is held as `serve` says once its policy has ended; until then the engine that trains it keeps it
on disk and serves it, so that a policy never takes two slots, and any engine while the policy is paused. It is held
whether or not the wave could continue, or be trained again, on its base as that is now.
"""

import msgspec

from mint_contracts.records import Tier
from mint_contracts.source import Source
from mint_contracts.training import Policy
from mint_operator.planning.adapters import Want, pins
from mint_operator.planning.refusal import NO_NAMES, Refusal
from mint_operator.planning.snapshot import ObservedWave
from mint_operator.training.standing import PolicyStanding, WaveStanding


def training_wants(wave: ObservedWave) -> tuple[Want, ...] | Refusal:
    """Return every adapter that the wave has published, or why it will publish none. `wave` carries its standing.

    For a wave whose spec cannot be read, these are the adapters that are placed.
    """
    standing = wave.standing
    if standing is None:
        return Refusal("InvalidRequest", "the wave's policies are not known", terminal=False, mentions=NO_NAMES)
    if wave.defect:
        return _kept(wave, standing)
    found = tuple(
        _want(wave, standing, policy, policy.published)
        for policy in standing.policies
        if policy.published is not None
    )
    if standing.unfit is None or standing.over or found:
        return found
    return standing.unfit


def _kept(wave: ObservedWave, standing: WaveStanding) -> tuple[Want, ...]:
    """Return the adapters as they are placed, but with newer revisions that have been published since."""
    policies = {policy.name: policy for policy in standing.policies}
    found = []
    for each in wave.listed or ():
        policy = policies.get(each.name, PolicyStanding(Policy(each.name)))
        want = _want(wave, standing, policy, policy.published or each.source)
        found.append(msgspec.structs.replace(want, source_from=wave.shared_with.get(each.name, ())))
    return tuple(found)


def _want(wave: ObservedWave, standing: WaveStanding, policy: PolicyStanding, source: Source) -> Want:
    spec, serve, waves = wave.spec, wave.spec.serve, (wave.meta.key,)
    if standing.ended(policy):
        return Want(policy.name, source, Tier(serve.residency), serve.replicas, waves, spec.priority, pins(spec))
    home = (policy.engine,) if policy.holds else ()
    return Want(policy.name, source, Tier.DISK, 1, waves, spec.priority, home, at_home=True)
