"""The part of the engine's link to the placement map about training: it reads leases and reports progress."""

from collections.abc import Callable, Mapping, Sequence

import msgspec
from redis.asyncio import Redis

from mint_contracts.step_figures import Curve
from mint_contracts.train_reader import TrainReader
from mint_contracts.train_reporter import TrainReporter
from mint_contracts.training_records import Progress, TrainAssignment, WaveTraining


class TrainBody(msgspec.Struct, frozen=True):
    """The engine's training, as the link sees it."""

    want: Callable[[Mapping[str, WaveTraining], Mapping[str, TrainAssignment]], None]
    confirm: Callable[[], None]  # called when the map has not changed
    progress: Callable[[], dict[str, Progress]]
    rewards: Callable[[], dict[str, Sequence[float]]]
    curves: Callable[[], dict[str, Curve]]


class TrainLink:
    """Reads leases and reports progress for the engine's agent."""

    def __init__(self, redis: Redis, base: str, engine: str, body: TrainBody) -> None:
        self._reader = TrainReader(redis)
        self._reporter = TrainReporter(redis, base, engine)
        self._base, self._engine, self._body = base, engine, body
        self._reported: dict[str, Progress] = {}
        self._curves: dict[str, Curve] = {}  # as last reported
        self._sent: dict[str, int] = {}  # number of rewards that the map has, by policy
        self._untaken: dict[str, int] = {}  # policies whose rewards the map had no lease for -> _pulls at that time
        self._pulls = 0
        self._full = True

    async def pull(self) -> None:
        """Read this engine's leases, then their waves; a lease without its wave waits for the next pull."""
        trains = (await self._reader.trains(self._base, [self._engine]))[self._engine]
        waves = await self._reader.some_training(self._base, {each.wave for each in trains.values()})
        self._body.want(waves, trains)
        self._pulls += 1

    def confirm(self) -> None:
        """Note that the map has nothing new."""
        self._body.confirm()

    async def report(self, incarnation: int, *, full: bool) -> None:
        """Report changes, or everything if it is unknown what the map has.

        Rewards that the map had no lease for, as after it was lost, are sent again once leases were read again.
        """
        pulls = self._pulls
        again = {policy for policy, before in self._untaken.items() if before != pulls}
        full, self._full = full or self._full, True
        reported, progress = {} if full else self._reported, self._body.progress()
        changed = [each for policy, each in progress.items() if reported.get(policy) != each]
        gone = [policy for policy in reported if policy not in progress]
        rewards = self._body.rewards()  # may grow while this is sent
        counts = {policy: len(values) for policy, values in rewards.items()}
        sent = {policy: 0 if full or policy in again else self._sent.get(policy, 0) for policy in rewards}
        lists = {policy: (sent[policy], values[sent[policy] :]) for policy, values in rewards.items()}
        curves = self._body.curves()
        new_curves = {policy for policy, curve in curves.items() if self._curves.get(policy, ()) != curve}
        due = new_curves | again  # also if they have no new rewards
        lists = {policy: each for policy, each in lists.items() if each[1] or full or policy in due}
        if full or changed or gone or lists:
            lacking = await self._reporter.report(
                incarnation, changed, gone, lists, full=full, curves={p: curves[p] for p in lists}
            )
            if lacking is None:
                return  # the next report after the engine's own will be a full one
            if lacking.short:
                whole = {policy: (0, rewards[policy][: counts[policy]]) for policy in lacking.short}
                await self._reporter.report(incarnation, (), (), whole, full=False)
            left = {
                policy: before
                for policy, before in self._untaken.items()
                if policy in rewards and policy not in lists
            }
            self._untaken = left | dict.fromkeys(lacking.unleased, pulls)
        self._reported, self._curves, self._full = progress, curves, False
        self._sent = counts
