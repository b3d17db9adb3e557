"""The event loop's side of training on the step thread: work is handed over and awaited here."""

import asyncio
import traceback
from collections.abc import Callable, Generator
from typing import NoReturn, TypeVar

from mint_contracts.awaiting import wait_uncancelled
from mint_contracts.errors import MintError
from mint_contracts.training import Optimizer
from mint_engine.model.routes import RouteShape
from mint_engine.policies.updates.steps import Due
from mint_engine.policies.updates.updates import Job, Learnt, Updates
from mint_engine.training.example import PolicyBatch
from mint_engine.training.making import Maker
from mint_engine.training.optimizer import StepOutcome
from mint_engine.training.policy import Policy
from mint_engine.training.trainer import Trainer

T = TypeVar("T")


class StepThread:
    """The step thread as seen from one event loop; `wake` makes it look for work (`Stepper.wake`)."""

    def __init__(self, updates: Updates, wake: Callable[[], None]) -> None:
        self._updates, self._wake = updates, wake
        self._loop = asyncio.get_running_loop()
        self._making = asyncio.Lock()
        updates.later = self._later

    @property
    def maker(self) -> Maker:
        """The maker, for short work only; to make a policy, use `make`."""
        return self._updates.trainer.maker

    @property
    def routes(self) -> RouteShape | None:
        """The shape of the base's expert routes; None if it has no routers."""
        return self._updates.trainer.routes

    async def call(self, work: Callable[[Trainer], T]) -> T:
        """Run short work on the step thread between two steps. Raises what it raises."""
        answer: asyncio.Future[T] = self._loop.create_future()
        resolve = self._resolver(answer)

        def run() -> None:
            resolve(self._updates.defects.attempt(lambda: work(self._updates.trainer), "training", "has a defect"))

        self._updates.call(run)
        self._wake()
        return await wait_uncancelled(answer)

    async def parts(self, work: Callable[[Trainer], Generator[None, None, T]]) -> T:
        """As `call`, for a generator of longer work: at each yield, a step may run in between."""
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
        """Make a policy on another thread; a `call` then puts it into the trainer. Raises what its making raises.

        One at a time, since a policy being made is not accounted for yet, and takes cores from decoding. If
        cancelled, returns only once the making has ended.
        """
        async with self._making:
            made = asyncio.ensure_future(asyncio.to_thread(work, self.maker))
            try:
                return await wait_uncancelled(made)
            except MintError:
                raise
            except Exception as error:  # noqa: BLE001 - reported and examined like any other defect
                defect = error
        traceback.clear_frames(defect.__traceback__)  # release its tensors: a full device must not look broken
        return await self.call(lambda _: _raise(defect))

    async def step(self, policy: str, optimizer: Optimizer) -> StepOutcome:
        """Take a policy's optimizer step with the gradients it has. Raises as `Trainer.begin_step`, or Draining.

        If cancelled, returns only once the step thread is done with the policy.
        """
        answer: asyncio.Future[StepOutcome] = self._loop.create_future()
        self._updates.step(Due(policy, optimizer, self._resolver(answer)))
        self._wake()
        return await wait_uncancelled(answer)

    async def learn(
        self,
        batch: PolicyBatch,
        optimizer: Optimizer | None,
        *,
        epochs: int = 1,
        finish: Callable[[Trainer], None] = lambda _: None,
        taken_s: float = 0.0,
    ) -> Learnt:
        """Update a policy, together with others that are ready. Raises what a job may (see `Job`).

        If cancelled, waits until the step thread is done with the policy, which then no longer postpones a failed
        hand-off. If the update has succeeded by then, it is returned, so that the step counts, and the caller is
        cancelled at its next await.
        """
        answer: asyncio.Future[Learnt] = self._loop.create_future()
        task = asyncio.current_task()

        def gone() -> bool:
            return task is not None and task.cancelling() > 0

        self._updates.put(Job(batch, optimizer, finish, self._resolver(answer), epochs, gone, taken_s))
        self._wake()
        try:
            return await wait_uncancelled(answer)
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

    def _resolver(self, answer: asyncio.Future[T]) -> Callable[[T | MintError], None]:
        return lambda found: self._schedule(lambda: _settle(answer, found))

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
