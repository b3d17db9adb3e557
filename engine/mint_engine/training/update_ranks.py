"""Who computes an update: this rank alone, or all ranks of the engine, led by this one.

The first rank keeps policies and losses. It sends every batch to the others and has them compute each piece when it
does so itself, so that all ranks compute in the same order between the same steps of requests.

An error on the first rank alone, between two pieces or while it grades, only ends the turn's updates: no rank waits
for another then, and all let go of what they hold of these updates. An error within a piece ends the engine, since
the other ranks may be waiting for sums that never come.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

from mint_contracts.errors import EngineUnavailable
from mint_engine.parallel.messages import Abandon, Advance, Give, Hold, Lesson
from mint_engine.training.batch import Batch, Held, Wanted, parts_of
from mint_engine.training.batch_message import to_message
from mint_engine.training.head import GradeOf, score_all
from mint_engine.training.passes import Pass
from mint_engine.training.policy import Policy, rounding, spans, vector
from mint_engine.training.sharing import Sharing

T = TypeVar("T")


class UpdateRanks(Protocol):
    """Computes updates, identified by the caller's numbers: hold, run any number of batches, gather, let go.

    One of these operations at a time; `let_go` follows however an update ended. Other updates that are held, to go on
    in a later turn, are not affected.
    """

    @property
    def name(self) -> str:
        """The pass's name."""
        ...

    @property
    def most_rows(self) -> int:
        """How many rows the pass takes at once while nobody waits for it."""
        ...

    def hold(self, policies: Mapping[int, Policy]) -> Generator[None, None, list[Held]]:
        """Hold this rank's part of policies, with zero gradients. Yields between bounded parts, as the others do."""
        ...

    def run(self, batch: Batch, wanted: Sequence[Wanted], grade: GradeOf, *, learn: bool) -> Iterator[None]:
        """Compute a batch, see `GenericPass.run`. `learn`: `grade` returns gradients, so there is a backward too."""
        ...

    def gather(self, held: Sequence[Held]) -> Generator[None, None, list[torch.Tensor]]:
        """Return the complete gradients of what is held, each [n] float32."""
        ...

    def let_go(self, numbers: Sequence[int]) -> None:
        """Release these updates on all other ranks, whether they are done or given up. Never raises."""
        ...


class FollowerRanks(Protocol):
    """The engine's other ranks, which follow (see `follower`)."""

    def check_training(self, own: str) -> None:
        """Raise UnsupportedBase if one of them trains by another kind of pass."""
        ...

    def tell_lesson(self, lesson: Lesson) -> None:
        """Have them do their part; this rank does its own right after."""
        ...

    def end(self) -> None:
        """End all of them, since this rank cannot go on."""
        ...


class SingleRank:
    """An engine of one rank."""

    def __init__(self, passed: Pass, dtype: torch.dtype) -> None:
        self._pass, self._dtype, self.name, self.most_rows = passed, dtype, passed.name, passed.most_rows

    def hold(self, policies: Mapping[int, Policy]) -> Generator[None, None, list[Held]]:
        """Hold all of each policy."""
        found = []
        for number, policy in policies.items():
            run = yield from rounding(policy, self._dtype)
            form, gradient = policy.form, vector(policy.weights.numel(), policy.weights.device)
            for span in spans(gradient):
                gradient[span] = 0  # write first: untouched pages that are read first fault twice
                yield
            found.append(Held(number, form.layout, parts_of(form.layout, form.scalings, run, gradient), gradient))
            yield
        return found

    def run(self, batch: Batch, wanted: Sequence[Wanted], grade: GradeOf, *, learn: bool) -> Iterator[None]:
        """See `UpdateRanks`."""
        return self._pass.run(batch, score_all(self._pass.head, wanted, grade))

    def gather(self, held: Sequence[Held]) -> Generator[None, None, list[torch.Tensor]]:
        """Return the gradients, which are complete."""
        yield from ()
        return [each.gradient for each in held]

    def let_go(self, numbers: Sequence[int]) -> None:
        """Do nothing: there is no other rank."""


class LeadRank:
    """The first of several ranks."""

    def __init__(self, passed: Pass, sharing: Sharing, others: FollowerRanks, dtype: torch.dtype) -> None:
        self._pass, self._sharing, self._others, self._dtype = passed, sharing, others, dtype
        self.name, self.most_rows = passed.name, passed.most_rows

    def hold(self, policies: Mapping[int, Policy]) -> Generator[None, None, list[Held]]:
        """Hold a share of each policy."""
        listed, found = [], list[Held]()
        for number, policy in policies.items():
            pairs = zip(policy.form.layout.places, policy.form.scalings, strict=True)
            listed.append((number, [(place.path, place.rank, scaling) for place, scaling in pairs]))
        runs: list[torch.Tensor] = []
        own = (
            self._sharing.take(number, each.form.layout, each.form.scalings, runs.pop())
            for number, each in policies.items()
        )
        steps = self._together(Hold(listed), own)
        for policy in policies.values():
            runs.append((yield from rounding(policy, self._dtype)))  # before the others begin: memory may run out
            found.append(next(steps))
            yield
        return found

    def run(self, batch: Batch, wanted: Sequence[Wanted], grade: GradeOf, *, learn: bool) -> Iterator[None]:
        """See `UpdateRanks`."""
        failures: list[Exception] = []

        def graded(number: int, taken: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor | None:
            """Must not raise before the piece is done, since the other ranks wait for its result."""
            if not failures:
                try:
                    return grade(number, taken, logprobs)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this update's alone; raised below
                    failures.append(error)
            return torch.zeros_like(logprobs) if learn else None

        own = self._pass.run(batch, score_all(self._pass.head, wanted, graded))
        for _ in self._together(to_message(batch, wanted, learn=learn), own):
            if failures:
                raise failures.pop()  # left in the list, it would keep this frame and its tensors alive
            yield

    def gather(self, held: Sequence[Held]) -> Generator[None, None, list[torch.Tensor]]:
        """Gather one stretch at a time."""
        found = []
        for each in held:
            whole, start = vector(each.layout.elements, each.gradient.device), 0
            for stretch in self._together(Give(each.number), self._sharing.give(each)):
                whole[start : start + stretch.numel()] = stretch
                start += stretch.numel()
                yield
            found.append(whole)
        return found

    def let_go(self, numbers: Sequence[int]) -> None:
        """See `UpdateRanks`; called at the end, or between two pieces."""
        try:
            self._others.tell_lesson(Abandon(numbers))
        except EngineUnavailable:  # one of them has ended, and so have all
            self._others.end()

    def _together(self, lesson: Lesson, own: Iterator[T]) -> Iterator[T]:
        """Yield the results of this rank's part of a lesson; all ranks compute each piece at the same time."""
        with self._or_none():
            self._others.tell_lesson(lesson)
        while True:
            with self._or_none():
                self._others.tell_lesson(Advance())
                try:
                    found = next(own)
                except StopIteration:
                    return
            yield found

    @contextmanager
    def _or_none(self) -> Iterator[None]:
        """End all ranks if the body raises: the others would wait for a rank that has not done its part."""
        try:
            yield
        except BaseException:
            self._others.end()
            raise
