"""Who may train what: a lease for each policy that has a slot. The token only ever grows.

A lease stays unchanged while the engine's start (incarnation) to which it was granted lives or may come back. A new
lease, with a higher token, goes to another engine or a later start of the same one, but never to an engine without a
heartbeat. A policy that was given up and is retried also gets a new lease: it continues from before steps that it had
taken, and the new token keeps its checkpoints and revisions apart from theirs.
"""

from collections.abc import Mapping

import msgspec

from mint_contracts.training_records import Order, TrainAssignment
from mint_operator.planning.engines import Engine
from mint_operator.training.standing import PolicyStanding, WaveStanding


class Ground(msgspec.Struct, frozen=True):
    """What one wave's leases depend on besides its standing. `slots` says on which engine each policy has a slot."""

    wave: str
    run: str
    admitted: bool
    slots: Mapping[str, str]
    engines: Mapping[str, Engine]
    now_ms: int


def leases(standing: WaveStanding, ground: Ground) -> dict[str, dict[str, TrainAssignment]]:
    """Return one wave's leases: engine -> policy -> assignment."""
    found: dict[str, dict[str, TrainAssignment]] = {}
    order = _order(standing, admitted=ground.admitted)
    for policy in standing.policies:
        slot = ground.slots.get(policy.name)
        engine, lease = _kept(policy, order, ground) if slot is None else _held(policy, slot, order, ground)
        if lease is not None:
            found.setdefault(engine, {})[policy.name] = lease
    return found


def _order(standing: WaveStanding, *, admitted: bool) -> Order:
    if standing.stopped:
        return Order.CANCEL
    return Order.PAUSE if standing.train.paused or not admitted else Order.RUN


def _kept(policy: PolicyStanding, order: Order, ground: Ground) -> tuple[str, TrainAssignment | None]:
    """Return the lease of a policy without a slot: unchanged, so that its engine saves it and keeps reporting on it.

    Without a slot it is not ordered to run: a complete one would continue by itself if its wave asks for more steps.
    """
    lease, engine = policy.assignment, ground.engines.get(policy.engine)
    if lease is None or engine is None or _restarted(lease, engine):
        return "", None
    return policy.engine, _again(lease, Order.PAUSE if order is Order.RUN else order, policy, ground)


def _held(policy: PolicyStanding, slot: str, order: Order, ground: Ground) -> tuple[str, TrainAssignment | None]:
    lease, engine = policy.assignment, ground.engines.get(slot)
    if engine is None:
        return "", None
    if lease is not None and policy.engine == slot and not _restarted(lease, engine):
        return slot, _again(lease, order, policy, ground)
    if engine.record is None:  # it is starting: the lease is granted to the start that reports
        return _kept(policy, order, ground)
    return slot, TrainAssignment(
        policy=policy.name,
        wave=ground.wave,
        lease=_next(policy, ground),
        settings=policy.settings,
        order=order,
        incarnation=engine.record.incarnation,
        run=ground.run,
        saved=policy.saved,
    )


def _again(lease: TrainAssignment, order: Order, policy: PolicyStanding, ground: Ground) -> TrainAssignment:
    """Return the same lease, complete even if only a part could be read; a new one if the policy is retried."""
    retried = policy.given_up and order is Order.RUN
    return TrainAssignment(
        policy=policy.name,
        wave=lease.wave,
        lease=_next(policy, ground) if retried else lease.lease,
        settings=policy.settings,
        order=order,
        incarnation=lease.incarnation,
        run=lease.run,
        saved=_saved(lease, policy),
    )


def _next(policy: PolicyStanding, ground: Ground) -> int:
    return max(ground.now_ms, policy.token + 1)


def _saved(lease: TrainAssignment, policy: PolicyStanding) -> int:
    """Return the lease's `saved`: updated only once the step has doubled, since engines reread all leases then."""
    return policy.saved if policy.saved >= 2 * lease.saved else lease.saved


def _restarted(lease: TrainAssignment, engine: Engine) -> bool:
    return engine.record is not None and engine.record.incarnation != lease.incarnation
