"""The event loop's side of the step thread's training: what is asked there is awaited here."""

import asyncio
import traceback
from collections.abc import Callable, Generator
from typing import NoReturn, TypeVar

from mint_contracts.awaiting import to_its_end
from mint_contracts.errors import MintError
from mint_contracts.training import Optimizer
from mint_engine.model.routes import RouteShape
from mint_engine.policies.steps import Due
from mint_engine.policies.updates import Job, Learnt, Updates
from mint_engine.training.example import PolicyBatch
from mint_engine.training.making import Maker
from mint_engine.training.optimizer import StepOutcome
from mint_engine.training.policy import Policy
from mint_engine.training.trainer import Trainer

T = TypeVar("T")


class StepThread:
    """The step thread as one event loop sees it; `wake` makes it look (`Stepper.wake`)."""

    def __init__(self, updates: Updates, wake: Callable[[], None]) -> None:
        self._updates, self._wake = updates, wake
        self._loop = asyncio.get_running_loop()
        self._making = asyncio.Lock()
        updates.later = self._later

    @property
    def maker(self) -> Maker:
        """For what is short: a policy is made by `make`."""
        return self._updates.trainer.maker

    @property
    def routes(self) -> RouteShape | None:
        """What the base's routers choose; None where it has none."""
        return self._updates.trainer.routes

    async def call(self, work: Callable[[Trainer], T]) -> T:
        """Something short, done by the step thread between two steps. Raises what it raises."""
        answer: asyncio.Future[T] = self._loop.create_future()

        def run() -> None:
            found = self._updates.defects.attempt(lambda: work(self._updates.trainer), "training", "has a defect")
            self._schedule(lambda: _settle(answer, found))

        self._updates.call(run)
        self._wake()
        return await to_its_end(answer)

    async def parts(self, work: Callable[[Trainer], Generator[None, None, T]]) -> T:
        """As `call`, something longer: wherever it pauses, a step may follow."""
        begun: list[Generator[None, None, T]] = []

        def part(trainer: Trainer) -> tuple[T] | None:
            if not begun:
                begun.append(work(trainer))
            try:
                next(begun[0])
            except StopIteration as end:
                return (end.value,)
            return None

        while (found := await self.call(part)) is None:
            pass
        return found[0]

    async def make(self, work: Callable[[Maker], Policy]) -> Policy:
        """A policy, by a thread of its own, to be put in by a `call`. Raises what its making raises.

        One at a time: what nobody has yet is counted nowhere, and takes cores from decoding. Cancelled, it lasts
        until nothing is made any more.
        """
        async with self._making:
            made = asyncio.ensure_future(asyncio.to_thread(work, self.maker))
            try:
                return await to_its_end(made)
            except MintError:
                raise
            except Exception as error:  # noqa: BLE001 - reported, and looked into, as any other beside serving
                defect = error
        traceback.clear_frames(defect.__traceback__)  # of its tensors: a full device is no broken one
        return await self.call(lambda _: _raise(defect))

    async def step(self, policy: str, optimizer: Optimizer) -> StepOutcome:
        """A policy's step along the gradients that it has. Raises as `Trainer.begin_step`, or Draining.

        Cancelled, it lasts until the step thread is done with the policy.
        """
        answer: asyncio.Future[StepOutcome] = self._loop.create_future()

        def resolve(found: StepOutcome | MintError) -> None:
            self._schedule(lambda: _settle(answer, found))

        self._updates.step(Due(policy, optimizer, resolve))
        self._wake()
        return await to_its_end(answer)

    async def learn(
        self,
        batch: PolicyBatch,
        optimizer: Optimizer | None,
        *,
        epochs: int = 1,
        finish: Callable[[Trainer], None] = lambda _: None,
    ) -> Learnt:
        """A policy's update, together with those of others that are ready. Raises what a job may (see `Job`).

        Cancelled, it lasts until the step thread is done with the policy, which puts no hand-off off any more. What
        was learnt by then is told, so that the step counts, and whoever is told is cancelled at the next thing that
        it waits for.
        """
        answer: asyncio.Future[Learnt] = self._loop.create_future()
        task = asyncio.current_task()

        def resolve(found: Learnt | MintError) -> None:
            self._schedule(lambda: _settle(answer, found))

        def gone() -> bool:
            return task is not None and task.cancelling() > 0

        self._updates.put(Job(batch, optimizer, finish, resolve, epochs, gone))
        self._wake()
        try:
            return await to_its_end(answer)
        except asyncio.CancelledError:
            if task is None or not answer.done() or answer.cancelled() or answer.exception() is not None:
                raise
            task.cancel()
            return answer.result()

    def _later(self, wait_s: float, work: Callable[[], None]) -> None:
        def do() -> None:
            work()
            self._wake()

        self._schedule(lambda: self._loop.call_later(wait_s, do))

    def _schedule(self, deliver: Callable[[], object]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver)


def _raise(defect: Exception) -> NoReturn:
    raise defect


def _settle(answer: "asyncio.Future[T]", found: T | MintError) -> None:
    if answer.done():
        return
    if isinstance(found, MintError):
        answer.set_exception(found)
    else:
        answer.set_result(found)
