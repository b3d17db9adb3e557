"""Updates of many policies, on the step thread, between the steps of requests.

Those that are ready when one begins share one forward and backward; which they are changes nobody's numbers. While no
tenant is served, updates go first: the rollouts that wait meanwhile then decode in fuller batches. While tenants are
served, updates take a bounded share of the time, in pieces that are short beside a step (see `allowance`).
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from mint_contracts.errors import Draining, Internal, MintError
from mint_contracts.training import Optimizer
from mint_engine.policies import training_metrics as metrics
from mint_engine.policies.allowance import Allowance
from mint_engine.training.example import PolicyBatch
from mint_engine.training.optimizer import StepOutcome
from mint_engine.training.trainer import Trainer
from mint_engine.training.work import LossOutcome, Work

ALONE_S = 0.2  # of updates in one go where only rollouts wait for them
FULL_ROWS = 1024  # so many tokens fill the matrix products: waiting for more policies would gain nothing
MOST_WAIT_S = 5.0  # for others' rollouts, which may go on for ever: those without a signal are followed by more

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Learnt:
    """What came of a job: of its last forward and backward, and of its last optimizer step, if it takes any."""

    outcome: LossOutcome
    step: StepOutcome | None


@dataclass(eq=False)
class Job:
    """One policy's update: `epochs` times over a batch, each with a step by `optimizer` (None: gradients only).

    `finish` runs on the step thread when the last step is taken, before anything else; then `resolve` is told.
    """

    batch: PolicyBatch
    optimizer: Optimizer | None
    finish: Callable[[Trainer], None]
    resolve: Callable[[Learnt | MintError], None]
    epochs: int = 1

    @property
    def rows(self) -> int:
        """Tokens of one epoch, those that completions share counted for each."""
        return sum(len(each.tokens) for each in self.batch.examples)


class Updates:
    """The step thread's `Background`. `put` and `call` may be called from any thread; who does wakes the thread."""

    def __init__(self, trainer: Trainer, clock: Callable[[], float] = time.monotonic) -> None:
        self.trainer = trainer
        self.rollouts: Callable[[], int] = lambda: 0  # in flight now
        self._clock = clock
        self._lock = threading.Lock()
        self._calls: deque[Callable[[], None]] = deque()
        self._ready: list[Job] = []
        self._ready_since = 0.0  # of the first of these
        self._work: Work | None = None
        self._jobs: list[Job] = []  # of `_work`
        self._stepping: deque[tuple[Job, LossOutcome]] = deque()  # jobs whose gradients are there
        self._closed = False
        self._allowance = Allowance()

    @property
    def busy(self) -> bool:
        """Whether a call waits, work is under way, or enough is ready to begin."""
        return bool(self._calls or self._stepping) or self._work is not None or self._ripe()

    def put(self, job: Job) -> None:
        """Have a job done."""
        with self._lock:
            if not self._closed:
                if not self._ready:
                    self._ready_since = self._clock()
                self._ready.append(job)
                return
        self._fail([job], Draining("engine", "is ending and trains no more"))

    def call(self, work: Callable[[], None]) -> None:
        """Have something short done on the step thread, or here once that has ended. It must not raise."""
        with self._lock:
            if not self._closed:
                self._calls.append(work)
                return
        work()

    def advance(self, requests: int, step_s: float) -> None:
        """See `Background`."""
        rollouts = self.rollouts()
        if requests > rollouts:
            self._beside(requests - rollouts, rollouts, step_s)
            return
        until = self._clock() + ALONE_S
        while self._piece() and self._clock() < until:
            pass

    def _beside(self, tenants: int, rollouts: int, step_s: float) -> None:
        self._allowance.grant(step_s, tenants, rollouts)
        began = self._clock()
        called = bool(self._calls)  # one follows each step, though pieces before it are still to be paid for
        while (called or self._allowance.open) and self._piece():
            called = False
            ended = self._clock()
            self._allowance.spend(ended - began)
            began = ended

    def close(self) -> None:
        """The step thread has ended: nothing is learnt any more, and what waits for it is told so."""
        with self._lock:
            self._closed = True
            jobs = [*self._jobs, *(job for job, _ in self._stepping), *self._ready]
            self._ready = []
        if self._work is not None:
            self._work.cancel()
        self._work, self._jobs = None, []
        self._stepping.clear()
        while self._calls:
            self._calls.popleft()()
        self._fail(jobs, Draining("engine", "is ending and trains no more"))

    def _ripe(self) -> bool:
        """Enough is ready, nobody is on the way whom it would pay to wait for, or it has been waited long enough."""
        if not self._ready:
            return False
        if not self.rollouts() or sum(job.rows for job in self._ready) >= FULL_ROWS:
            return True
        return self._clock() - self._ready_since >= MOST_WAIT_S

    def _piece(self) -> bool:
        """Do what was called for first, compute one piece, or take one job's step; whether there was any."""
        if self._calls:
            self._calls.popleft()()
            return True
        if self._stepping:
            with metrics.PIECE.time():
                self._take(*self._stepping.popleft())
            return True
        if self._work is None and self._ripe():
            self._begin()
        if self._work is None:
            return False
        try:
            with metrics.PIECE.time():
                more = self._work.advance()
        except MintError as error:  # another rank has ended, say
            self._fail(self._jobs, error)
        except Exception as defect:  # noqa: BLE001 - whatever is wrong with these updates, the engine goes on serving
            _log.exception("update_defect", policies=[job.batch.policy for job in self._jobs])
            self._fail(self._jobs, Internal("update", f"failed ({type(defect).__name__}: {defect}); see the log"))
        else:
            if not more:
                self._end(self._work)
        return True

    def _begin(self) -> None:
        with self._lock:
            jobs, self._ready = _first_of_each(self._ready)
            if self._ready:
                self._ready_since = self._clock()
        found = self._try_begin(jobs)
        if isinstance(found, Work):
            self._work, self._jobs = found, jobs
            metrics.TOGETHER.observe(len(jobs))
        elif len(jobs) == 1:
            self._fail(jobs, found)
        else:
            self._refuse_bad(jobs)

    def _refuse_bad(self, jobs: list[Job]) -> None:
        """One bad batch must not stop the others: find it, and have the rest done."""
        for job in jobs:
            found = self._try_begin([job])
            if isinstance(found, Work):
                found.cancel()
                self.put(job)
            else:
                self._fail([job], found)

    def _try_begin(self, jobs: list[Job]) -> Work | MintError:
        """The work of these jobs, or why it can not begin."""
        try:
            return self.trainer.begin([job.batch for job in jobs])
        except MintError as error:
            return error
        except Exception as defect:  # noqa: BLE001 - whatever is wrong with a batch, the step thread goes on serving
            policies = [job.batch.policy for job in jobs]
            _log.exception("update_defect", policies=policies)
            return Internal(
                f"update of {', '.join(policies)}", f"could not begin ({type(defect).__name__}: {defect})"
            )

    def _end(self, work: Work) -> None:
        outcomes = work.results()
        self._stepping.extend((job, outcomes[job.batch.policy]) for job in self._jobs)
        self._work, self._jobs = None, []

    def _take(self, job: Job, outcome: LossOutcome) -> None:
        """A job's step; with epochs left it begins again."""
        name, step = job.batch.policy, None
        try:
            if job.optimizer is not None:
                step = self.trainer.step({name: job.optimizer})[name]
                self.trainer.policy(name).halfway = job.epochs > 1
            job.epochs -= 1
            if job.epochs > 0:
                self.put(job)
                return
            job.finish(self.trainer)
        except MintError as error:  # it was dropped meanwhile, say
            self._fail([job], error)
        except Exception as defect:  # noqa: BLE001 - a learning rate beyond all floats, say: its own trouble
            _log.exception("update_defect", policies=[name])
            self._fail([job], Internal(f"policy {name!r}", f"took no step ({type(defect).__name__}: {defect})"))
        else:
            job.resolve(Learnt(outcome, step))

    def _fail(self, jobs: list[Job], error: MintError) -> None:
        if jobs is self._jobs:
            self._work, self._jobs = None, []
        for job in jobs:
            job.resolve(type(error)(error.subject, error.message))


def _first_of_each(jobs: list[Job]) -> tuple[list[Job], list[Job]]:
    """The first job of each policy, which can be done together, and the others, which follow."""
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(job.batch.policy, job)
    return list(first.values()), [job for job in jobs if job is not first[job.batch.policy]]
