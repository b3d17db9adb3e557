"""Who computes an update: this rank alone, or all ranks of the engine with this one in the lead.

The first rank keeps policies and losses. It tells the others every batch, and has them compute it piece by piece when
it does so itself: so they meet in the same order between the same steps of requests.

What goes wrong on the first rank alone between two pieces, or while it grades, ends the turn's updates and no more:
nobody waits for anybody then, and all ranks let go of what they hold of them. What goes wrong within a piece ends the
engine, for the others may be waiting for sums that never come.
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


class Crew(Protocol):
    """Updates by numbers of who asks: hold each, run any number of batches, gather; let go wherever it ended.

    One thing of these at a time. Others that are held meanwhile, to go on in a later turn, stay as they are.
    """

    @property
    def name(self) -> str:
        """The pass's."""
        ...

    @property
    def most_rows(self) -> int:
        """How many rows the pass takes at once where nobody waits for it."""
        ...

    def hold(self, policies: Mapping[int, Policy]) -> Generator[None, None, list[Held]]:
        """What this rank holds of policies, with gradients of zero. Pauses between bounded parts of it, as all do."""
        ...

    def run(self, batch: Batch, wanted: Sequence[Wanted], grade: GradeOf, *, learn: bool) -> Iterator[None]:
        """Compute a batch, see `GenericPass.run`; `learn`: grades are given, and so it goes back too."""
        ...

    def gather(self, held: Sequence[Held]) -> Generator[None, None, list[torch.Tensor]]:
        """The gradients of all that is held, each whole [n] float32."""
        ...

    def let_go(self, numbers: Sequence[int]) -> None:
        """Keep nothing of these on any other rank, whether they are done or given up; never raises."""
        ...


class Others(Protocol):
    """The engine's other ranks, which follow (see `follower`)."""

    def check_training(self, own: str) -> None:
        """Raise UnsupportedBase where one of them trains by another kind of pass."""
        ...

    def tell_lesson(self, lesson: Lesson) -> None:
        """Have them do their part; this rank does its own right after."""
        ...

    def end(self) -> None:
        """This rank can not go on, and so none of them can."""
        ...


class Alone:
    """An engine of one rank."""

    def __init__(self, passed: Pass, dtype: torch.dtype) -> None:
        self._pass, self._dtype, self.name, self.most_rows = passed, dtype, passed.name, passed.most_rows

    def hold(self, policies: Mapping[int, Policy]) -> Generator[None, None, list[Held]]:
        """All of them."""
        found = []
        for number, policy in policies.items():
            run = yield from rounding(policy, self._dtype)
            form, gradient = policy.form, vector(policy.weights.numel(), policy.weights.device)
            for span in spans(gradient):
                gradient[span] = 0  # it is read before it is written to: of pages that are not there each comes twice
                yield
            found.append(Held(number, form.layout, parts_of(form.layout, form.scalings, run, gradient), gradient))
            yield
        return found

    def run(self, batch: Batch, wanted: Sequence[Wanted], grade: GradeOf, *, learn: bool) -> Iterator[None]:
        """See `Crew`."""
        return self._pass.run(batch, score_all(self._pass.head, wanted, grade))

    def gather(self, held: Sequence[Held]) -> Generator[None, None, list[torch.Tensor]]:
        """What is held is whole."""
        yield from ()
        return [each.gradient for each in held]

    def let_go(self, numbers: Sequence[int]) -> None:
        """There is no other."""


class Leader:
    """The first of several ranks."""

    def __init__(self, passed: Pass, sharing: Sharing, others: Others, dtype: torch.dtype) -> None:
        self._pass, self._sharing, self._others, self._dtype = passed, sharing, others, dtype
        self.name, self.most_rows = passed.name, passed.most_rows

    def hold(self, policies: Mapping[int, Policy]) -> Generator[None, None, list[Held]]:
        """A share of each."""
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
            runs.append((yield from rounding(policy, self._dtype)))  # before the others do: there may be no memory
            found.append(next(steps))
            yield
        return found

    def run(self, batch: Batch, wanted: Sequence[Wanted], grade: GradeOf, *, learn: bool) -> Iterator[None]:
        """See `Crew`."""
        failures: list[Exception] = []

        def graded(number: int, taken: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor | None:
            """The others wait for what this gives, so it must not raise before the piece is done."""
            if not failures:
                try:
                    return grade(number, taken, logprobs)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this update's alone; raised below
                    failures.append(error)
            return torch.zeros_like(logprobs) if learn else None

        own = self._pass.run(batch, score_all(self._pass.head, wanted, graded))
        for _ in self._together(to_message(batch, wanted, learn=learn), own):
            if failures:
                raise failures.pop()  # kept there, it would hold this frame, and by it what the device keeps
            yield

    def gather(self, held: Sequence[Held]) -> Generator[None, None, list[torch.Tensor]]:
        """A stretch at a time."""
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
        """See `Crew`; at the end, or between two pieces."""
        try:
            self._others.tell_lesson(Abandon(numbers))
        except EngineUnavailable:  # one of them has ended, and so have all
            self._others.end()

    def _together(self, lesson: Lesson, own: Iterator[T]) -> Iterator[T]:
        """What this rank's part of a lesson gives; each piece of it is computed by all at the same time."""
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
        """All ranks do it, or none of them goes on: one that has not done its part would be waited for."""
        try:
            yield
        except BaseException:
            self._others.end()
            raise
