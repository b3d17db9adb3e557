"""One policy's training under one lease: `moves` decides what to do, a course does it. Belongs to the event loop."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from statistics import fmean

import msgspec
import structlog

from mint_contracts.awaiting import wait_uncancelled
from mint_contracts.errors import Internal, MintError, NonFiniteWeights, StaleLease
from mint_contracts.records import Failure
from mint_contracts.source import Source
from mint_contracts.step_figures import Curve, evaluated, figures_of_step, followed_by
from mint_contracts.training import Train
from mint_contracts.training_records import Order, Progress, Published, Stage, TrainAssignment, WaveTraining
from mint_engine.adapters.packed import Packed
from mint_engine.examples.example import Example
from mint_engine.policies import training_metrics as metrics
from mint_engine.policies.courses import beginning
from mint_engine.policies.courses.handoff import hand_off, label_of
from mint_engine.policies.courses.keeping import Keeping
from mint_engine.policies.courses.lessons import Lessons
from mint_engine.policies.courses.moves import Move, Standing, next_move
from mint_engine.policies.courses.terms import Terms, terms_of
from mint_engine.policies.halt import Halt, Halted
from mint_engine.policies.patience import AWAY, Patience
from mint_engine.policies.stored.checkpoints import Record
from mint_engine.policies.stored.store import store_of
from mint_engine.policies.training_context import TrainingContext
from mint_engine.rewards.scorer import Scorer
from mint_engine.training.trainer import Trainer

UNSURE_S = 0.25
MOST_SKIPPED = 3  # steps in a row whose gradient is not finite
RECENT = 10  # steps, as in Progress.reward_recent
HELD_S = 1.0  # that checked examples are kept; a course that waits longer for a slot reads them again

_log = structlog.get_logger(__name__)
_numbers = itertools.count(1)


class Course:
    """A course under one lease. `order` and `train` may change while it runs; each progress calls `on_change`."""

    def __init__(
        self,
        context: TrainingContext,
        wave: WaveTraining,
        assignment: TrainAssignment,
        sure: Callable[[], bool],
        on_change: Callable[[], None],
    ) -> None:
        self._context, self._wave, self._sure, self._on_change = context, wave, sure, on_change
        self.assignment = assignment
        self._number = next(_numbers)
        self._since = time.monotonic()  # when the roster, which creates it, got its policy
        self.train: Train = wave.train
        self._order = assignment.order
        self.stage = Stage.LOADING
        self.rewards: list[float] = []
        self._best: float | None = None  # of these
        self.curve: Curve = ()
        self._standing = Standing()
        self._failure: Failure | None = None
        self._newer_lease = 0
        self._patience = Patience(assignment.policy, on_change)
        self._halt = Halt(lambda: not self._runs())
        self._evaluation: float | None = None
        self._published: Published | None = None  # until `_keeping` exists
        self._tokens, self._step_s, self._skipped = 0, 0.0, 0
        self.waits = False  # for the map to confirm its lease
        self.abandoned = False  # its lease may be another engine's
        self.draining = False  # the engine shuts down: finished steps are saved before all is released
        self._preparing: asyncio.Future[Lessons] | None = None  # waits for examples, memory and a slot
        self._was_stopped = False  # an order to stop cancelled `_preparing`
        self._readable = False  # its examples were checked, and have been readable since
        self._longest = 0  # tokens that one of them with a completion may have
        self._slot: int | None = None
        self._label = ""
        self._keeping: Keeping | None = None
        self._scorer: Scorer | None = None  # made once, since it holds connections
        self._lessons: Lessons | None = None

    @property
    def order(self) -> Order:
        """What it is told to do. An order to stop interrupts waits that lose nothing by it (see `Halt`)."""
        return self._order

    @order.setter
    def order(self, order: Order) -> None:
        self._order = order
        self._halt.update()
        if order is not Order.RUN and self._preparing is not None:
            self._was_stopped = self._preparing.cancel() or self._was_stopped
        more = self.stage is Stage.COMPLETE and self._standing.step < self.train.steps
        if order is Order.CANCEL and (more or self.stage is Stage.PAUSED):  # already saved
            self._set_stage(Stage.CANCELLED)
        elif order is Order.PAUSE and more:
            self._set_stage(Stage.PAUSED)

    def follow(self, before: "Course") -> None:
        """Show, until loaded, the progress of an earlier course under the same lease."""
        progress = before.progress
        self.rewards, self.curve, self._tokens = list(before.rewards), before.curve, progress.tokens
        self._best = progress.reward_best
        self._evaluation, self._published = progress.evaluation, progress.published
        self._standing = Standing(progress.saved, progress.saved)

    @property
    def progress(self) -> Progress:
        """The progress that the engine reports in the map."""
        rewards, keeping = self.rewards, self._keeping
        return Progress(
            policy=self.assignment.policy,
            wave=self.assignment.wave,
            lease=self.assignment.lease,
            stage=self.stage,
            run=self.assignment.run,
            step=self._standing.step,
            steps=self.train.steps,
            reward_mean=rewards[-1] if rewards else None,
            reward_best=self._best,
            reward_recent=fmean(rewards[-RECENT:]) if rewards else None,
            evaluation=self._evaluation,
            tokens=self._tokens,
            step_s=round(self._step_s, 3),
            published=keeping.published if keeping is not None else self._published,
            failure=self._failure or self._trouble,
            retry=self.train.retry,
            figures=self.curve[-1] if self.curve else None,
            saved=max(self.assignment.saved, self._standing.saved if keeping is None else keeping.saved),
            newer_lease=self._newer_lease,
        )

    @property
    def _trouble(self) -> Failure | None:
        """A failure that may pass by itself, or once its cause is fixed; None if there is none."""
        error = next(iter(self._patience.trouble.values()), None)
        return Failure(reason=error.reason, message=str(error), terminal=False) if error is not None else None

    def _record(self, keeping: Keeping) -> Record:
        """The record of a checkpoint of the last finished step, without the blob's digest and size."""
        assignment = self.assignment
        return Record(
            policy=assignment.policy,
            wave=assignment.wave,
            lease=assignment.lease,
            step=self._standing.step,
            digest="",
            run=assignment.run,
            tokens=self._tokens,
            rewards=tuple(self.rewards),
            curve=self.curve,
            evaluation=self._evaluation,
            evaluated=self._standing.evaluated,
            published=keeping.published,
        )

    async def run(self) -> None:
        """Train until the end, an order to stop or a failure, then release everything. If cancelled, stop at once."""
        try:
            await self._live()
        except asyncio.CancelledError:
            if self.draining and self._keeping is not None:
                unsaved = self._standing.saved < self._standing.step
                record = self._record(self._keeping) if unsaved else None
                await self._keeping.save_last(self._standing.step, record)
            raise
        except MintError as error:
            if self.order is Order.CANCEL and isinstance(error, AWAY):
                _log.warning("cancelled_unsaved", policy=self.assignment.policy, error=str(error))
                self._set_stage(Stage.CANCELLED)
            else:
                self._fail(error)
        except Exception as defect:  # noqa: BLE001 - whatever is wrong with one policy, the others go on
            _log.exception("course_defect", policy=self.assignment.policy)
            reason = f"a defect ({type(defect).__name__}: {defect})"
            self._fail(Internal(f"policy {self.assignment.policy!r}", reason))
        finally:
            await wait_uncancelled(asyncio.ensure_future(self._let_go()))
            self._on_change()

    async def _live(self) -> None:
        with metrics.SECONDS.labels("load").time():
            lessons = await self._unless_stopped()
            if lessons is None:
                saved = max(self.assignment.saved, self._standing.step)
                self._standing = Standing(saved, saved)
                self._set_stage(Stage.PAUSED if self.order is Order.PAUSE else Stage.CANCELLED)
                return
            self._lessons = lessons
            self._keeping = keeping = await self._patience(partial(self._load, lessons), "load", self._keeps)
        self._set_stage(Stage.RUNNING)
        moves: dict[Move, Callable[[], Awaitable[None]]] = {
            Move.STEP: self._step,
            Move.EVALUATE: self._evaluate,
            Move.SAVE: partial(self._save, keeping),
            Move.PUBLISH: partial(self._publish, keeping),
            Move.SETTLE: keeping.settle,
            Move.WAIT: partial(asyncio.sleep, UNSURE_S),
        }
        while True:
            keeping.raise_failure()
            standing = msgspec.structs.replace(self._standing, writing=keeping.writing)
            move = next_move(standing, self.train, self.order, sure=self._sure())
            self.waits = move is Move.WAIT
            if isinstance(move, Stage):
                self._set_stage(move)
                return
            halt = self._halt if move in {Move.STEP, Move.EVALUATE} else None  # other moves are not interrupted
            with suppress(Halted):
                await self._patience(moves[move], move, self._keeps, halt)
            self._on_change()

    def _runs(self) -> bool:
        return self.order is Order.RUN

    def _keeps(self) -> bool:
        """Whether what is learnt is still wanted, now or later."""
        return self.order is not Order.CANCEL

    async def _unless_stopped(self) -> Lessons | None:
        """Return its lessons, or None if an order to stop comes while it waits for examples, memory or a slot."""
        task = asyncio.current_task()
        while True:
            self._was_stopped = False
            self._preparing = asyncio.ensure_future(self._patience(self._prepare, "load", self._keeps))
            try:
                return await self._preparing
            except asyncio.CancelledError:
                if not self._was_stopped or task is None or task.cancelling():
                    raise
            finally:
                self._preparing = None
            if not self._runs():  # otherwise it has since been told to go on
                return None

    async def _prepare(self) -> Lessons:
        """Get examples, memory and a slot. A waiting course occupies no slot, and holds examples only briefly."""
        terms, context = terms_of(self._wave, self.assignment), self._context
        if terms.reward is not None and self._scorer is None:
            self._scorer = Scorer(terms.reward, terms.wave)
        if not self._readable:
            if self._scorer is not None:
                await self._scorer.check()
            held = [await self._read(terms)]
            self._longest = await beginning.check_examples(context, terms, self._scorer, *held[0])
            asyncio.get_running_loop().call_later(HELD_S, held.clear)
            self._readable = True
        if self._slot is None:
            self._slot = await beginning.reserve(context, terms, self._longest)
        try:
            examples, held_out = await self._read(terms)
        except MintError:
            self._readable = False
            await self._leave_slot()
            raise
        patiently = partial(self._patience, lasts=self._keeps, halt=self._halt)
        return Lessons(context, terms, self._slot, examples, held_out, self._scorer, patiently, self._halt)

    async def _load(self, lessons: Lessons) -> Keeping:
        """Load the policy from its newest checkpoint, or make a new one."""
        store = await asyncio.to_thread(store_of, self._wave.store)
        patiently = partial(self._patience, lasts=self._keeps)
        keeping = Keeping(self._context, store, lessons.terms, self._sure, self._offer, patiently)
        await keeping.refuse_newer_lease()
        await self._restore(lessons.terms, keeping, lessons.slot)
        return keeping

    async def _read(self, terms: Terms) -> tuple[Sequence[Example], Sequence[Example]]:
        """Return the training examples, and those that evaluations use."""
        datasets, evaluation = self._context.datasets, terms.train.evaluation
        examples = await datasets.read(terms.run, terms.dataset)
        if evaluation is None:
            return examples, ()
        return examples, await datasets.first(terms.run, evaluation.dataset or terms.dataset, evaluation.prompts)

    async def _restore(self, terms: Terms, keeping: Keeping, slot: int) -> None:
        policy, record = await beginning.make(self._context, terms, keeping.checkpoints, self._since)
        if record is not None:
            self._take_up(record)
            # Steps that are taken again may come to other numbers than those published: publish them again.
            published = min(await keeping.take_up(record), record.step)
            self._standing = msgspec.structs.replace(self._standing, published=published)
        else:
            self._standing = Standing(saved=-1 if terms.start_from or self.train.evaluation else 0)
        self._label = label = label_of(terms.policy, self._number, self._standing.step)

        def begin(trainer: Trainer) -> None:
            trainer.add(policy)
            hand_off(self._context.slots, slot, policy, label)

        await self._context.step_thread.call(begin)
        _log.info(
            "training", policy=terms.policy, wave=terms.wave, lease=terms.lease, step=self._standing.step, slot=slot
        )

    def _take_up(self, record: Record) -> None:
        self.rewards, self.curve, self._tokens = list(record.rewards), record.curve, record.tokens
        self._best = max(self.rewards, default=None)
        self._evaluation = record.evaluation
        self._standing = Standing(record.step, record.step, evaluated=record.evaluated)

    async def _step(self) -> None:
        lessons, step, began = self._running(), self._standing.step, time.monotonic()
        next_label = label_of(self.assignment.policy, self._number, step + 1)
        taken = await lessons.take(step, self.train.steps, self._label, next_label)
        if taken.learnt is not None:
            self._label = next_label
            self._count_skipped(taken.learnt.step is not None and taken.learnt.step.skipped)
        self.rewards.append(taken.reward)
        self._best = taken.reward if self._best is None else max(self._best, taken.reward)
        self.curve = followed_by(self.curve, figures_of_step(step + 1, taken.figures))
        self._tokens += taken.tokens
        self._standing = msgspec.structs.replace(self._standing, step=step + 1)
        seconds = time.monotonic() - began
        self._step_s += (1.0 if self._step_s == 0.0 else 0.3) * (seconds - self._step_s)
        metrics.SECONDS.labels("step").observe(seconds)
        metrics.STEPS.inc()
        metrics.TOKENS.inc(taken.tokens)
        _log.info(
            "step",
            policy=self.assignment.policy,
            wave=self.assignment.wave,
            step=step + 1,
            reward=round(taken.reward, 4),
            tokens=taken.tokens,
            seconds=round(seconds, 3),
            **taken.figures,
        )

    async def _evaluate(self) -> None:
        with metrics.SECONDS.labels("evaluate").time():
            self._evaluation = await self._running().evaluate(self._standing.step, self._label)
        self.curve = evaluated(self.curve, self._standing.step, self._evaluation)
        step = self._standing.step
        saved = min(self._standing.saved, step - 1)  # a checkpoint of this step lacks the evaluation
        self._standing = msgspec.structs.replace(self._standing, evaluated=step, saved=saved)

    async def _save(self, keeping: Keeping) -> None:
        await keeping.save(self._record(keeping))
        self._standing = msgspec.structs.replace(self._standing, saved=self._standing.step)

    async def _publish(self, keeping: Keeping) -> None:
        await keeping.publish(self._standing.step)
        self._standing = msgspec.structs.replace(self._standing, published=self._standing.step)

    def _offer(self, source: Source, packed: Packed) -> None:
        """Serve what was published, unless the course was abandoned: then the map alone decides what is served."""
        if not self.abandoned:
            self._context.residency.offer(self.assignment.policy, source, packed)

    def _count_skipped(self, skipped: bool) -> None:
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped >= MOST_SKIPPED:
            raise NonFiniteWeights(
                f"policy {self.assignment.policy!r}",
                f"has had no finite gradient for {MOST_SKIPPED} steps; lower the learning rate",
            )

    def _running(self) -> Lessons:
        if self._lessons is None:
            raise Internal(f"policy {self.assignment.policy!r}", "has not been loaded")
        return self._lessons

    def _set_stage(self, stage: Stage) -> None:
        self.stage = stage
        self._on_change()
        _log.info("stage", policy=self.assignment.policy, wave=self.assignment.wave, stage=stage)

    def _fail(self, error: MintError) -> None:
        self._failure = Failure(reason=error.reason, message=str(error), terminal=True)
        self._newer_lease = error.newer if isinstance(error, StaleLease) else 0
        _log.error("policy_failed", policy=self.assignment.policy, reason=error.reason, error=str(error))
        self._set_stage(Stage.FAILED)

    async def _let_go(self) -> None:
        """Release everything: writes, weights, slot, connections."""
        scorer, self._scorer = self._scorer, None
        self._lessons = None  # an ended course is kept, its examples are not
        try:
            if self._keeping is not None:
                await self._keeping.abandon()
            if scorer is not None:
                await scorer.close()
        finally:
            try:
                await self._context.step_thread.call(lambda trainer: trainer.drop(self.assignment.policy))
            finally:
                await self._leave_slot()

    async def _leave_slot(self) -> None:
        if self._slot is not None:
            slot, self._slot = self._slot, None
            await beginning.release(self._context, self.assignment.policy, slot)
