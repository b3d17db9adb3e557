"""All courses of one engine, kept as the map wants them. Level-based; belongs to the event loop."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from mint_contracts.step_figures import Curve
from mint_contracts.training_records import Order, Progress, Stage, TrainAssignment, WaveTraining
from mint_engine.policies import training_metrics as metrics
from mint_engine.policies.courses.course import Course
from mint_engine.policies.courses.moves import is_sure
from mint_engine.policies.training_context import TrainingContext

CLOSE_S = 10.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Running:
    course: Course
    task: "asyncio.Task[None]"

    @property
    def ended(self) -> bool:
        return self.task.done()


class Roster:
    """The policies that this engine trains. `on_change` is called whenever progress has changed."""

    def __init__(
        self,
        context: TrainingContext,
        incarnation: int,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context, self._incarnation, self._clock = context, incarnation, clock
        self.on_change = on_change
        self._running: dict[str, _Running] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._confirmed_at = clock()

    @property
    def policies(self) -> frozenset[str]:
        """The policies that belong to waves here."""
        return frozenset(self._running)

    def want(self, waves: Mapping[str, WaveTraining], assignments: Mapping[str, TrainAssignment]) -> None:
        """Train these from now on. A policy that is missing, or under another lease, is abandoned at once."""
        self.confirm()
        for policy, running in list(self._running.items()):
            assignment = assignments.get(policy)
            if assignment is None or _identity(assignment) != _identity(running.course.assignment):
                self._abandon(policy, running)
        for policy, assignment in assignments.items():
            wave = waves.get(assignment.wave)
            if wave is not None and assignment.incarnation in {0, self._incarnation}:
                self._keep(policy, wave, assignment)

    def confirm(self) -> None:
        """Record that the map was read and is unchanged, which confirms all leases."""
        self._confirmed_at = self._clock()

    def progress(self) -> dict[str, Progress]:
        """Return each policy's progress, and update the metric of policies by stage."""
        found = {policy: running.course.progress for policy, running in self._running.items()}
        stages = Counter(each.stage for each in found.values())
        for stage in Stage:
            metrics.POLICIES.labels(stage.lower()).set(stages[stage])
        return found

    def rewards(self) -> dict[str, Sequence[float]]:
        """Return the mean reward of each finished step, by policy."""
        return {policy: running.course.rewards for policy, running in self._running.items()}

    def curves(self) -> dict[str, Curve]:
        """Return what finished steps tell of themselves besides their rewards, by policy."""
        return {policy: running.course.curve for policy, running in self._running.items()}

    async def close(self) -> None:
        """Save finished steps and let go of everything, within `CLOSE_S`.

        Unsaved steps will be trained again, with the same outcome.
        """
        for policy, running in list(self._running.items()):
            running.course.draining = True
            self._abandon(policy, running)
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=CLOSE_S)

    def _keep(self, policy: str, wave: WaveTraining, assignment: TrainAssignment) -> None:
        running = self._running.get(policy)
        if running is None or _continues(running.course, assignment, wave):
            self._start(policy, wave, assignment)
        elif not running.ended or running.course.stage in {Stage.PAUSED, Stage.COMPLETE}:
            running.course.train, running.course.order = wave.train, assignment.order

    def _start(self, policy: str, wave: WaveTraining, assignment: TrainAssignment) -> None:
        course = Course(self._context, wave, assignment, self._sure, self._changed)
        if policy in self._running:  # it has ended, but may not have released everything yet
            course.follow(self._running[policy].course)
            self._leave(self._running[policy].task)
        before = [task for task in self._leaving if task.get_name() == policy]

        async def begin() -> None:
            if before:  # the last course of this policy may still hold its weights
                await asyncio.wait(before)
            await course.run()

        self._running[policy] = _Running(course, asyncio.create_task(begin(), name=policy))

    def _abandon(self, policy: str, running: _Running) -> None:
        del self._running[policy]
        running.course.abandoned = True  # it may still publish before it ends
        self._context.residency.withdraw(policy)
        if not running.ended:
            _log.info("lease_gone", policy=policy, lease=running.course.assignment.lease)
            running.task.cancel()
            self._leave(running.task)
        self._changed()

    def _leave(self, task: "asyncio.Task[None]") -> None:
        """Remember a task until it ends: the policy's next course waits for all of them."""
        if not task.done():
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def _sure(self) -> bool:
        return is_sure(self._confirmed_at, self._clock())

    def _changed(self) -> None:
        self.on_change()


def _identity(assignment: TrainAssignment) -> tuple[int, str, int]:
    """Return what identifies an assignment: a change of it means a different one."""
    return assignment.lease, assignment.run, assignment.incarnation


def _continues(course: Course, assignment: TrainAssignment, wave: WaveTraining) -> bool:
    """Whether an ended course continues under its lease: it was paused, or has more steps to take.

    A cancelled or failed one continues under a new lease: it repeats steps that it had taken, and results that may
    differ must not be written under the same names.
    """
    if assignment.order is not Order.RUN:
        return False
    more = course.stage is Stage.COMPLETE and wave.train.steps > course.progress.step
    return course.stage is Stage.PAUSED or more
