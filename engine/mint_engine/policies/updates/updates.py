"""Updates of many policies, on the step thread, between the steps of requests.

Updates that are ready at the same time share one forward and backward pass; which ones do so changes no policy's
numbers, and neither do the turns of long ones (see `turns`): a policy stays as it was until its update ends. While no
tenant is served, updates go first, and the rollouts that wait meanwhile then decode in fuller batches; but those of
policies that draw no rollouts leave half of the time to others' rollouts. While tenants are served, updates take a
bounded share of the time, in pieces that are short beside a step (see `allowance`).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import structlog

from mint_contracts.errors import Draining, Internal, MintError, Overloaded
from mint_contracts.training import Optimizer
from mint_engine.policies import training_metrics as metrics
from mint_engine.policies.patience import ATTEMPTS, AWAY, wait_after
from mint_engine.policies.updates.allowance import Allowance
from mint_engine.policies.updates.defects import Defects
from mint_engine.policies.updates.steps import Due, Steps
from mint_engine.policies.updates.turns import Waiting, next_turn
from mint_engine.residency.copies import fresh_error
from mint_engine.training.example import PolicyBatch, with_old
from mint_engine.training.optimizer import StepOutcome
from mint_engine.training.pieces import longest_of, rows_of
from mint_engine.training.trainer import Trainer
from mint_engine.training.work import LossOutcome, Share, Work

ALONE_S = 0.2  # of updates in one go while only rollouts wait
FULL_ROWS = 1024  # tokens that fill the matrix products: waiting for more policies would gain nothing
TURN_ROWS = 8 * FULL_ROWS  # of one job per turn; a single example may have more
MOST_ROWS = 64 * FULL_ROWS  # of all jobs in one turn, whose end all of them wait for
MOST_BYTES = 4 << 30  # of gradients, in memory from a job's first turn to its end; a single job's may take more
# How long an update waits for those of policies whose rollouts are in flight: at most this share of what its step has
# taken so far, so that policies in step learn together and no policy is held up by slower ones.
WAIT_SHARE, MOST_WAIT_S = 1 / 8, 5.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Learnt:
    """A job's outcome: of its last forward and backward pass, and of its last optimizer step, if it takes any."""

    outcome: LossOutcome
    step: StepOutcome | None


@dataclass(eq=False)
class Job:
    """One policy's update: `epochs` times over a batch, each with a step by `optimizer` (None: gradients only).

    `finish` runs right after the last step, before any other work of the step thread. After a transient error it is
    retried a little later, as is an epoch after the first, without repeating a step, unless the caller is `gone` by
    then. Then `resolve` gets the outcome: the last epoch's, but with the first one's `drift`, from before any step.
    After the step thread has ended, whoever closes the queue resolves the remaining jobs.
    """

    batch: PolicyBatch
    optimizer: Optimizer | None
    finish: Callable[[Trainer], None]
    resolve: Callable[[Learnt | MintError], None]
    epochs: int = 1
    gone: Callable[[], bool] = lambda: False
    taken_s: float = 0.0  # seconds that the policy's step has taken so far; 0: it draws no rollouts
    due: float = 0.0  # when it begins even without others
    stepped: bool = False  # has taken a step, which a retry of the job would repeat
    alone: bool = False  # must be computed without others, since work with them failed
    left: Share | None = None  # the remainder of this epoch after a turn; None before its first turn
    failures: int = 0  # transient ones, after which it was retried
    drift: dict[str, float] = field(default_factory=dict)  # that metric of the first epoch, once known

    @cached_property
    def rows(self) -> int:
        """Tokens computed in one epoch; a prompt that completions share counts for each of them."""
        return sum(map(rows_of, self.batch.examples))

    @cached_property
    def turn_rows(self) -> int:
        """Tokens of one turn, at most."""
        return min(self.rows, max(TURN_ROWS, longest_of(self.batch)))


class Updates:
    """The step thread's `Background`. `put`, `step` and `call` work from any thread; callers then wake the thread."""

    def __init__(self, trainer: Trainer, clock: Callable[[], float] = time.monotonic) -> None:
        self.trainer = trainer
        self.rollouts: Callable[[], int] = lambda: 0  # returns how many are in flight now
        self.later: Callable[[float, Callable[[], None]], None] = lambda _, work: work()  # after a delay
        self.defects = Defects()
        self._clock = clock
        self._lock = threading.Lock()
        self._calls: deque[Callable[[], None]] = deque()
        self._unchecked: deque[Job] = deque()
        self._checking: Iterator[None] | None = None  # of the first unchecked job
        self._ready: list[Job] = []
        self._work: Work | None = None
        self._jobs: list[Job] = []  # computed by `_work`
        self._postponed: list[Job] = []  # have taken a step; what follows it will be retried
        self._steps = Steps(trainer, self.defects)  # of jobs whose gradients are computed, and of calls
        self._closed = False
        self._allowance = Allowance()
        self._alone = False  # no tenant is served

    @property
    def busy(self) -> bool:
        """Whether a call waits, work is under way, or enough is ready to begin."""
        begun = self._steps.busy or self._unchecked or self._work is not None
        return bool(self._calls or begun) or self._ripe()

    def put(self, job: Job) -> None:
        """Queue a job."""
        with self._lock:
            if not self._closed:
                job.due = self._clock() + min(MOST_WAIT_S, WAIT_SHARE * job.taken_s)
                self._unchecked.append(job)
                return
        self._fail([job], _ending())

    def step(self, due: Due) -> None:
        """Queue an optimizer step of a policy, with the gradients it has."""
        with self._lock:
            if not self._closed:
                self._steps.put(due)
                return
        due.resolve(_ending())

    def call(self, work: Callable[[], None]) -> None:
        """Run short work on the step thread, or here once that has ended. It must not raise."""
        with self._lock:
            if not self._closed:
                self._calls.append(work)
                return
        work()

    def advance(self, requests: int, step_s: float) -> None:
        """See `Background`."""
        rollouts = self.rollouts()
        self._alone = requests <= rollouts
        if not self._alone:
            self._allowance.grant(step_s, requests - rollouts, rollouts)
        elif step_s and not self._go_first:
            self._allowance.halve(step_s)
        else:
            until = self._clock() + ALONE_S
            while self._piece() and self._clock() < until:
                pass
            return
        self._spend()

    @property
    def _go_first(self) -> bool:
        """Whether rollouts wait for updates: those of policies that draw more rollouts then, which decode with them.

        For updates of policies that draw none, they might wait without end.
        """
        jobs = [*self._jobs, *self._ready, *self._unchecked]
        return self._steps.draws or any(job.taken_s for job in jobs) or not (jobs or self._steps.busy)

    def _spend(self) -> None:
        began = self._clock()
        called = bool(self._calls)  # one call follows each step, even if earlier pieces are not paid for yet
        while (called or self._allowance.open) and self._piece():
            called = False
            ended = self._clock()
            self._allowance.spend(ended - began)
            began = ended

    def close(self) -> None:
        """End training after the step thread has ended: everything that still waits fails with Draining."""
        with self._lock:
            self._closed = True
        self.defects.computes = lambda: True  # only the step thread could check that
        left = self._steps.close()
        jobs = [*self._jobs, *self._ready, *self._unchecked, *self._postponed]
        if begun := [job.left for job in self._ready if job.left is not None]:
            self.trainer.begin(begun).cancel()
        self._ready = []
        self._unchecked.clear()
        self._postponed.clear()
        if self._work is not None:
            self._work.cancel()
        self._work, self._jobs = None, []
        while self._calls:
            self._calls.popleft()()
        self._fail(jobs, _ending())
        for due in left:
            due.resolve(_ending())

    def _ripe(self) -> bool:
        """Whether to begin now: enough is ready, no rollouts are worth waiting for, or a job has waited long enough.

        A job that has begun keeps its gradient in memory, so it waits for nothing.
        """
        if not self._ready:
            return False
        if not self.rollouts() or sum(job.rows for job in self._ready) >= FULL_ROWS:
            return True
        now = self._clock()
        return any(job.left is not None or job.due <= now for job in self._ready)

    def _piece(self) -> bool:
        """Run the first call, or one piece of a step, check or update; returns whether there was anything to do."""
        if self._calls:
            self._calls.popleft()()
            return True
        piece = self._next()
        if piece is None:
            return False
        with metrics.PIECE.time():
            piece()
        return True

    def _next(self) -> Callable[[], None] | None:
        if self._steps.busy:
            return self._steps.advance
        if self._unchecked:  # before any work begins, so that jobs that came together are computed together
            return self._check
        if self._work is not None:
            return partial(self._compute, self._work)
        return self._begin if self._ripe() else None

    def _check(self) -> None:
        """Check a bounded part of the first unchecked job's examples. If they are invalid, that job alone fails."""
        job = self._unchecked[0]
        checking = self._checking = self._checking or self.trainer.check(job.batch)
        found = self.defects.attempt(lambda: next(checking, True), _subject(job), "could not be checked")
        if found is None:
            return
        self._checking = None
        self._unchecked.popleft()
        if isinstance(found, MintError):
            self._fail([job], found)
        else:
            self._ready.append(job)

    def _begin(self) -> None:
        taken = next_turn([self._waiting(job) for job in self._ready], MOST_ROWS, MOST_BYTES)
        jobs = [self._ready[at] for at in taken]
        self._ready = [job for job in self._ready if job not in jobs]
        found = self._try_begin(jobs)
        if isinstance(found, Work):
            self._work, self._jobs = found, jobs
            metrics.TOGETHER.observe(len(jobs))
        elif len(jobs) == 1:
            self._fail(jobs, found)
        else:
            self._refuse_bad(jobs)

    def _refuse_bad(self, jobs: list[Job]) -> None:
        """Fail the jobs that cannot begin even alone and put the others back: one bad batch must not stop them."""
        good = []
        for job in jobs:
            found = self._try_begin([job]) if job.left is None else None  # one that has begun was good then
            if isinstance(found, MintError):
                self._fail([job], found)
                continue
            if found is not None:
                found.cancel()
            good.append(job)
        self._ready[:0] = good

    def _waiting(self, job: Job) -> Waiting:
        policy, lasts = job.batch.policy, job.rows > TURN_ROWS
        nbytes = self.trainer.gradient_bytes(policy)
        return Waiting(policy, job.turn_rows, nbytes, lasts, begun=job.left is not None, alone=job.alone)

    def _try_begin(self, jobs: list[Job]) -> Work | MintError:
        """Return the work of these jobs, or the error that keeps it from beginning."""

        def begin() -> Work:
            return self.trainer.begin([job.left or job.batch for job in jobs], checked=True, most=TURN_ROWS)

        return self.defects.attempt(begin, ", ".join(map(_subject, jobs)), "could not begin")

    def _compute(self, work: Work) -> None:
        found = self.defects.attempt(partial(work.advance, alone=self._alone), "update", "failed")
        if isinstance(found, Internal | Overloaded) and len(self._jobs) > 1:
            self._apart()
        elif isinstance(found, MintError):  # e.g. another rank has ended
            self._fail(self._jobs, found)
        elif not found:
            self._end(work)

    def _apart(self) -> None:
        """Compute each job alone after joint work failed, since one of them may be too large or wrong for all.

        Each starts its epoch again: what the failed turn has added is in the same sums as its earlier turns.
        """
        jobs, self._work, self._jobs = self._jobs, None, []
        for job in jobs:
            job.alone, job.left = True, None
        self._ready[:0] = jobs

    def _end(self, work: Work) -> None:
        outcomes, left = work.results(), work.left()
        jobs, self._work, self._jobs = self._jobs, None, []
        for job in jobs:
            name = job.batch.policy
            job.left = left.get(name)
            if job.left is not None:
                self._ready.append(job)
            elif job.optimizer is None:
                self._stepped(job, outcomes[name], None)
            else:
                stepped = partial(self._stepped, job, outcomes[name])
                self._steps.put(Due(name, job.optimizer, stepped, draws=job.taken_s > 0.0))

    def _stepped(self, job: Job, outcome: LossOutcome, step: StepOutcome | MintError | None) -> None:
        """Handle the end of a job's epoch or step; with epochs left, the job is queued again."""
        if isinstance(step, MintError):
            self.trainer.drop_gradient(job.batch.policy)  # a retry of the job computes it again, and would add to it
            self._fail([job], step)
            return
        job.epochs -= 1
        job.drift = job.drift or {name: found for name, found in outcome.metrics.items() if name == "drift"}
        if step is not None:
            job.stepped = self.trainer.policy(job.batch.policy).halfway = True
        if job.epochs > 0:
            if job.batch.loss.reads_old:
                job.batch = with_old(job.batch, outcome.logprobs)
            self._ready.append(job)
            return
        self._hand_off(job, Learnt(replace(outcome, metrics=outcome.metrics | job.drift), step))

    def _hand_off(self, job: Job, learnt: Learnt) -> None:
        """Run `finish` for a job that has taken all of its steps."""
        found = self.defects.attempt(lambda: job.finish(self.trainer), _subject(job), "could not be handed off")
        if not isinstance(found, MintError):
            if learnt.step is not None:
                self.trainer.policy(job.batch.policy).halfway = False
            job.resolve(learnt)
        elif not self._postpone(job, found, partial(self._hand_off, job, learnt)):
            self._fail([job], found)

    def _postpone(self, job: Job, error: MintError, work: Callable[[], None]) -> bool:
        """Run `work`, which has failed for a job, a little later; return whether that is worth trying."""
        job.failures += 1
        if not isinstance(error, AWAY) or job.failures >= ATTEMPTS or job.gone():
            return False
        wait_s = wait_after(error, job.failures)
        _log.warning("update_postponed", policy=job.batch.policy, error=str(error), in_s=round(wait_s, 2))
        self._postponed.append(job)
        self.later(wait_s, lambda: self.call(partial(self._go_on, job, work)))
        return True

    def _go_on(self, job: Job, work: Callable[[], None]) -> None:
        if job in self._postponed:  # unless `close` has resolved it
            self._postponed.remove(job)
            work()

    def _restart(self, job: Job) -> None:
        """Begin a job's epoch again: the steps of earlier ones are taken, and this one has changed nothing."""
        job.alone, job.left = True, None
        self._ready.append(job)

    def _fail(self, jobs: list[Job], error: MintError) -> None:
        if jobs is self._jobs:
            self._work, self._jobs = None, []
        for job in jobs:
            if not (job.stepped and isinstance(error, AWAY)):
                job.resolve(fresh_error(error, error.retry_after_s))
            elif not (job.epochs and self._postpone(job, error, partial(self._restart, job))):
                job.resolve(Internal(error.subject, f"{_without_advice(error)}; given up"))


def _without_advice(error: MintError) -> str:
    """Return the message without the advice after its last semicolon (e.g. to retry), which no longer applies."""
    wrong, _, advice = error.message.rpartition("; ")
    return wrong or advice


def _subject(job: Job) -> str:
    return f"policy {job.batch.policy!r}"


def _ending() -> Draining:
    return Draining("engine", "is shutting down and no longer trains")
