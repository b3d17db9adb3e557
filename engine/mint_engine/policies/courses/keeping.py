"""What a course writes to the store while its steps go on: checkpoints and revisions.

At most one of each is being written at a time. No write begins while the lease is not sure.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog

from mint_contracts.awaiting import end_tasks
from mint_contracts.errors import InvalidRequest, MintError, StaleLease
from mint_contracts.source import Source
from mint_contracts.training_records import Published
from mint_engine.adapters.packed import Packed
from mint_engine.background_threads import run_in_background
from mint_engine.policies import training_metrics as metrics
from mint_engine.policies.courses.beginning import holder_of
from mint_engine.policies.courses.terms import Terms
from mint_engine.policies.patience import Patiently
from mint_engine.policies.stored import revisions
from mint_engine.policies.stored.checkpoints import Checkpoints, Record, digest_of
from mint_engine.policies.stored.series import Name
from mint_engine.policies.stored.store import Store
from mint_engine.policies.training_context import TrainingContext
from mint_engine.policies.updates.copying import Copying, copying, packing
from mint_engine.sources.blocking import run_blocking
from mint_engine.training import state
from mint_engine.training.policy import Policy
from mint_engine.training.trainer import Trainer

UNSURE_S = 0.25
LAST_SAVE_S = 6.0

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Keeping:
    """One policy's writes under one lease. `sure` returns whether the lease may still be acted on.

    `offer` is called with each revision and its source once it is published.
    """

    def __init__(
        self,
        context: TrainingContext,
        store: Store,
        terms: Terms,
        sure: Callable[[], bool],
        offer: Callable[[Source, Packed], None],
        patiently: Patiently,
    ) -> None:
        self._context, self._store, self._terms, self._sure = context, store, terms, sure
        self._offer, self._patiently = offer, patiently
        self._room, self._holder = context.residency.room, holder_of(terms.policy)
        self.checkpoints = Checkpoints(store, terms.policy, terms.run)
        self.published: Published | None = None
        self.saved = 0  # the step of the newest complete checkpoint
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def writing(self) -> bool:
        """Whether a write is under way."""
        return any(not task.done() for task in self._tasks.values())

    def raise_failure(self) -> None:
        """Raise the error of a write that has ended, if any."""
        for kind in [kind for kind, task in self._tasks.items() if task.done()]:
            self._tasks.pop(kind).result()

    async def refuse_newer_lease(self) -> None:
        """Raise StaleLease if the store was written under a later lease: under this one nothing can be."""
        terms, saved = self._terms, self.checkpoints.series.latest_lease
        latest = await run_blocking(lambda: max(saved(), revisions.latest_lease(self._store, terms.policy)))
        if latest > terms.lease:
            reason = f"was trained before under lease {latest}, which is later than {terms.lease}"
            raise StaleLease(f"policy {terms.policy!r}", reason, newer=latest)

    async def take_up(self, record: Record) -> int:
        """Find the last revision published under the checkpoint's lease or a later one; returns its step, or 0.

        It may be newer than the one in the checkpoint's record, which may have been swept.
        """
        self.saved = record.step
        newest = await run_blocking(revisions.newest, self._store, self._terms.policy, record.lease)
        self.published = newest or record.published
        return self.published.step if self.published is not None else 0

    async def save(self, record: Record) -> None:
        """Begin to write a checkpoint of the current policy; `record` lacks the blob's digest and size.

        Raises InvalidRequest in the middle of an update, whose step would be taken twice after a resume.
        """
        await self._end_of("save")
        policy, needs = self._terms.policy, self._room.of(self._holder)

        async def write(copy: Policy) -> None:
            blob = await run_in_background(state.to_bytes, copy)
            del copy  # do not keep it in memory beside its bytes while the store writes
            complete = msgspec.structs.replace(
                record, digest=await run_in_background(digest_of, blob), size=len(blob)
            )
            await self._write(lambda: self.checkpoints.save(complete, blob), "checkpoint")
            self.saved = record.step

        with ExitStack() as held:
            held.callback(await self._room.begin_copy(self._holder, needs.copies))
            copy = await self._context.step_thread.parts(lambda trainer: _copying(trainer, policy))
            self._begin("save", write(copy), held.pop_all())

    async def save_last(self, step: int, record: Record | None) -> None:
        """Save a checkpoint as the engine shuts down, if time allows; otherwise steps up to `step` are trained again.

        Without a record, only wait for the writes under way: the last step is saved, or being saved.
        """
        try:
            async with asyncio.timeout(LAST_SAVE_S):
                if record is not None:
                    await self.save(record)
                await self.settle()
        except (MintError, TimeoutError) as error:
            _log.warning("last_step_unsaved", policy=self._terms.policy, step=step, error=str(error))

    async def publish(self, step: int) -> None:
        """Begin to publish the current policy as the revision of `step`; it is offered once published."""
        await self._end_of("publish")
        name, dtype, terms = Name(self._terms.lease, step), self._context.dtype, self._terms
        needs = self._room.of(self._holder)

        async def write(copy: Packed) -> None:
            publishing = partial(revisions.publish, self._store, terms.policy, name, copy)
            published, packed = await self._write(publishing, "revision")
            self.published = published
            self._offer(published.source, packed)
            _log.info("published", policy=terms.policy, wave=terms.wave, revision=published.revision, step=step)
            await self._write(lambda: revisions.sweep(self._store, terms.policy, name), "revision")

        with ExitStack() as held:
            held.callback(await self._room.begin_copy(self._holder, needs.published))
            copy = await self._context.step_thread.parts(lambda trainer: packing(trainer, terms.policy, dtype))
            self._begin("publish", write(copy), held.pop_all())

    async def settle(self) -> None:
        """Wait for the writes under way. Raises their errors."""
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        self.raise_failure()

    async def abandon(self) -> None:
        """Stop writing. A thread finishes the write it is in; the lease in the file's name keeps that harmless."""
        await end_tasks(self._tasks.values())
        self._tasks.clear()

    async def _end_of(self, kind: str) -> None:
        if kind in self._tasks:
            await asyncio.wait({self._tasks[kind]})
            self._tasks.pop(kind).result()

    def _begin(self, kind: str, work: Coroutine[Any, Any, None], held: ExitStack) -> None:
        """Start `work` as a task beside the steps; `held` is released however it ends."""

        async def timed() -> None:
            with metrics.SECONDS.labels(kind).time():
                await work

        task = self._tasks[kind] = asyncio.create_task(timed())
        task.add_done_callback(lambda _: held.close())

    async def _write(self, work: Callable[[], T], what: str) -> T:
        """Run `work` on a thread once the lease is sure, and again after transient errors.

        `what` is one of the two writes that may be under way at once, and distinguishes their trouble.
        """

        async def attempt() -> T:
            while True:
                if self._sure():
                    return await run_in_background(work)
                await asyncio.sleep(UNSURE_S)

        return await self._patiently(attempt, f"write {what}")


def _copying(trainer: Trainer, name: str) -> Copying:
    """Copy a policy's numbers as they are between two steps.

    Drops the gradient: it belongs to an interrupted update, which will be computed again.
    """
    if trainer.policy(name).halfway:
        raise InvalidRequest(f"policy {name!r}", "is in the middle of an update and cannot be saved")
    copy = yield from copying(trainer, name)
    copy.forget_gradient()
    return copy
