"""The other ranks' side of an update: they do what the first rank tells them, and know no losses or policies."""

from collections.abc import Iterator, Mapping

import torch

from mint_engine.adapters.adapter import Module
from mint_engine.adapters.packed import lay_out
from mint_engine.model.base import Base
from mint_engine.parallel.group import Group
from mint_engine.parallel.messages import Abandon, Advance, Compute, Hold, Lesson
from mint_engine.training.batch import Held
from mint_engine.training.batch_message import from_message
from mint_engine.training.head import score_all
from mint_engine.training.passes import choose_pass
from mint_engine.training.sharing import Sharing


class Follower:
    """Made from a rank's share of a base before serving swaps its modules, like the first rank's trainer."""

    def __init__(self, base: Base, modules: Mapping[str, Module], group: Group) -> None:
        self._modules, self._device = modules, base.device
        self._pass = choose_pass(base, modules, group=group)
        self._sharing = Sharing(modules, group, base.dtype, base.device)
        self._held: dict[int, Held] = {}
        self._steps: Iterator[object] = iter(())

    @property
    def compute(self) -> str:
        """The name of the pass that computes."""
        return self._pass.name

    @torch.no_grad()
    def do(self, lesson: Lesson) -> None:
        """Do this rank's part of a lesson, as all others do now. Raises EngineUnavailable if one has ended."""
        if isinstance(lesson, Hold):
            self._steps = self._hold(lesson)
        elif isinstance(lesson, Compute):
            self._steps = self._compute(lesson)
        elif isinstance(lesson, Advance):
            next(self._steps, None)
        elif isinstance(lesson, Abandon):
            for number in lesson.policies:
                self._held.pop(number, None)
            self._steps = iter(())
        else:
            self._steps = self._sharing.give(self._held.pop(lesson.policy))

    def _hold(self, message: Hold) -> Iterator[None]:
        for number, parts in message.policies:
            layout = lay_out(self._modules, {path: rank for path, rank, _ in parts})
            scalings = [scaling for _, _, scaling in parts]
            self._held[number] = self._sharing.take(number, layout, scalings, None)
            yield

    def _compute(self, message: Compute) -> Iterator[None]:
        batch, wanted = from_message(message, self._held, self._device)

        def grade(_number: int, _taken: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor | None:
            return torch.zeros_like(logprobs) if message.learn else None  # the first rank adds the real ones

        return self._pass.run(batch, score_all(self._pass.head, wanted, grade))
