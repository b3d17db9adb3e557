"""How the policies of a training wave stand: what the map says about each, and whether it needs an engine."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import msgspec

from mint_contracts.source import Source
from mint_contracts.training import Policy, Train
from mint_contracts.training_records import Order, Progress, Stage, TrainAssignment, TrainState
from mint_contracts.training_reports import AT_REST, LatestReports, latest_reports
from mint_operator.planning.refusal import Refusal

# Engine, policy and lease of each report that a live engine makes now -> the engine's incarnation.
Reporting = Mapping[tuple[str, str, int], int]

_OVER = {Stage.FAILED, Stage.CANCELLED}
_SAVED = {Stage.PAUSED, Stage.COMPLETE}


class PolicyStanding(msgspec.Struct, frozen=True):
    """One policy. `assignment` is the newest one, on `engine`; `token` is the highest known lease.

    `given_up`: its assignment ended by giving it up, and it is to continue.
    """

    settings: Policy
    engine: str = ""
    assignment: TrainAssignment | None = None
    progress: Progress | None = None
    token: int = 0
    given_up: bool = False

    @property
    def name(self) -> str:
        """The name of the adapter that it is published as."""
        return self.settings.name

    @property
    def stage(self) -> Stage | None:
        """The stage in the last report; None before the first."""
        return self.progress.stage if self.progress else None

    @property
    def step(self) -> int:
        """The number of finished steps."""
        return self.progress.step if self.progress else 0

    @property
    def published(self) -> Source | None:
        """The source of its newest published revision; None before the first."""
        revision = self.progress.published if self.progress else None
        return revision.source if revision else None

    @property
    def saved(self) -> int:
        """The step of the newest known checkpoint; 0: none."""
        assigned = self.assignment.saved if self.assignment else 0
        return max(assigned, self.progress.saved if self.progress else 0)

    @property
    def rests(self) -> bool:
        """Whether it is completely saved in the store, and in no slot unless it was ordered to continue."""
        return self.stage in _SAVED

    @property
    def holds(self) -> bool:
        """Whether an engine holds, or may hold, a slot for it: unless it was ordered to stop and is saved.

        A policy that was ordered to run again but has not begun counts as holding one.
        """
        lease = self.assignment
        return lease is not None and not (lease.order is not Order.RUN and self.rests)

    def ended(self, steps: int) -> bool:
        """Whether nothing is left to train. A complete policy continues if its wave asks for more steps."""
        return self.stage in _OVER or (self.stage is Stage.COMPLETE and self.step >= steps)


class WaveStanding(msgspec.Struct, frozen=True, dict=True):
    """A wave's policies, and its training with all inputs filled in. `pins` says where policies train, or should.

    `wants_slot` are the policies that need a slot now, in the order in which they get one. `unfit` says why the wave
    cannot be trained as it is written, `waiting` why it must wait. `kept`: the spec cannot be read, and everything
    stays as it is. `store` is where its policies are saved and published, or were while the base trained. `unknown`
    says why it is unknown how to train those that no engine has.
    """

    train: Train
    policies: tuple[PolicyStanding, ...] = ()
    wants_slot: tuple[str, ...] = ()
    pins: Mapping[str, str] = {}
    unfit: Refusal | None = None
    waiting: Refusal | None = None
    kept: bool = False
    store: Source = Source(uri="")
    unknown: Refusal | None = None

    @cached_property
    def stopped(self) -> bool:
        """Whether no policy is to continue: computed once, since it depends on every policy and each asks for it."""
        return self.train.cancelled or self.failed

    @property
    def failed(self) -> bool:
        """Whether more policies have failed than the wave allows."""
        return _too_many(sum(each.stage is Stage.FAILED for each in self.policies), len(self.policies), self.train)

    @property
    def over(self) -> bool:
        """Whether every policy has ended."""
        return bool(self.policies) and all(self.ended(each) for each in self.policies)

    def ended(self, policy: PolicyStanding) -> bool:
        """Whether a policy has nothing left to train, or rests and is not to continue."""
        return policy.ended(self.train.steps) or (self.stopped and not policy.holds)

    def is_saving(self, policy: PolicyStanding) -> bool:
        """Whether a policy is to be saved where it is, since it has no slot any more."""
        return policy.holds and not self.ended(policy) and policy.name not in self.pins and not self.kept

    @property
    def refused(self) -> Refusal | None:
        """Why the rest is not trained; None also if there is nothing left to train."""
        return None if self.over else self.unfit or self.waiting

    @property
    def begun(self) -> bool:
        """Whether any of its policies was ever given to an engine."""
        return any(each.assignment is not None or each.progress is not None for each in self.policies)

    @property
    def leased(self) -> bool:
        """Whether an engine holds a slot for any of its policies, so that the wave keeps what it has been given."""
        wanting = frozenset(self.wants_slot)
        return any(each.holds and each.name in wanting for each in self.policies)


def heard(progress: Mapping[str, Progress], train: Train, policies: int) -> dict[str, Progress]:
    """Return the reports on a wave's policies as the wave interprets them; `policies` is their number.

    A policy that was given up counts as paused once it is to continue: because it is retried, because its lease was
    not the newest, or because it was cancelled when others failed (the wave itself is not cancelled) and no more than
    allowed count as failed now.
    """
    if train.cancelled:
        return dict(progress)
    failed = sum(each.stage is Stage.FAILED and not _retried(each, train) for each in progress.values())
    spared = {Stage.CANCELLED} if failed and not _too_many(failed, policies, train) else set()
    return {
        name: msgspec.structs.replace(each, stage=Stage.PAUSED, failure=None)
        if _retried(each, train) or each.stage in spared
        else each
        for name, each in progress.items()
    }


def _retried(progress: Progress, train: Train) -> bool:
    return progress.stage in _OVER and (progress.retry < train.retry or progress.newer_lease > 0)


def _too_many(failed: int, policies: int, train: Train) -> bool:
    """Whether more of a wave's policies have failed than it allows."""
    most = train.failure_policy.max_failed
    return failed == policies > 0 if most is None else failed > most


def standings_of(
    wave: str, run: str, policies: Iterable[Policy], train: Train, state: TrainState, reporting: Reporting
) -> tuple[PolicyStanding, ...]:
    """Return how every policy of a wave stands.

    An assignment that the map has lost is recovered from the report of the live engine that still works under it. No
    engine works on a policy at rest; the wave's record remembers it however often engines restart. Nor does one that
    has stopped reporting on a policy: it has dropped it, or is another start, which may not have the same lease.
    """
    record = state.training.get(wave)
    latest = latest_reports(
        wave, run, state.progress, record.last_words if record is not None and record.run == run else ()
    )
    policies = tuple(policies)
    taken = heard({name: word for name, (_, word) in latest.items()}, train, len(policies))
    again = {name: word.lease for name, (_, word) in latest.items() if word.stage is not taken[name].stage}
    latest = {name: (engine, taken[name]) for name, (engine, _) in latest.items()}
    found = (_standing(wave, run, policy, state, latest, reporting) for policy in policies)
    return tuple(
        msgspec.structs.replace(each, given_up=True)
        if each.assignment is not None and again.get(each.name) == each.assignment.lease
        else each
        for each in found
    )


def wanting(train: Train, policies: Sequence[PolicyStanding], *, stopped: bool) -> tuple[str, ...]:
    """Return the policies that need a slot now: those that have one first, then in the wave's order."""
    needy = [each for each in policies if not each.ended(train.steps) and not _rests(each, train, stopped=stopped)]
    return tuple(each.name for each in sorted(needy, key=lambda each: not each.holds))


def _rests(policy: PolicyStanding, train: Train, *, stopped: bool) -> bool:
    """Whether a policy that has not ended needs no slot: it is saved or has not begun, and is not to continue."""
    return (train.paused or stopped) and not policy.holds


def _standing(
    wave: str, run: str, policy: Policy, state: TrainState, latest: LatestReports, reporting: Reporting
) -> PolicyStanding:
    name = policy.name
    given = [
        (each.lease, engine, each)
        for engine, of in state.trains.items()
        if (each := of.get(name)) is not None and each.wave == wave and each.run == run
    ]
    found = PolicyStanding(policy)
    if given:
        token, engine, assignment = max(given, key=lambda item: item[:2])
        found = PolicyStanding(policy, engine, assignment, None, token)
    if name not in latest:
        return found
    where, progress = latest[name]
    start = reporting.get((where, name, progress.lease))
    if progress.lease > found.token and start is not None and progress.stage not in AT_REST:
        return PolicyStanding(policy, where, _adopted(policy, progress, start), progress, progress.lease)
    token = max(found.token, progress.lease, progress.newer_lease)
    return msgspec.structs.replace(found, progress=progress, token=token)


def _adopted(policy: Policy, progress: Progress, incarnation: int) -> TrainAssignment:
    return TrainAssignment(
        policy=policy.name,
        wave=progress.wave,
        lease=progress.lease,
        settings=policy,
        incarnation=incarnation,
        run=progress.run,
        saved=progress.saved,
    )
