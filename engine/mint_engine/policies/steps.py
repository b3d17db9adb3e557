"""Optimizer steps of policies, one after another on the step thread, each in bounded pieces."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mint_contracts.errors import MintError, NotFound
from mint_contracts.training import Optimizer
from mint_engine.policies.defects import Defects
from mint_engine.training.optimizer import StepOutcome
from mint_engine.training.stepping import Stepping
from mint_engine.training.trainer import Trainer


@dataclass(eq=False, frozen=True)
class Due:
    """A step that a policy is to take. `resolve` is told on the step thread, before anything else is done there."""

    policy: str
    optimizer: Optimizer
    resolve: Callable[[StepOutcome | MintError], None]


class Steps:
    """Those that are due, in their order."""

    def __init__(self, trainer: Trainer, defects: Defects) -> None:
        self._trainer, self._defects = trainer, defects
        self._due: deque[Due] = deque()
        self._stepping: Stepping | None = None  # of the first of these

    @property
    def busy(self) -> bool:
        """Whether one is due."""
        return bool(self._due)

    def put(self, due: Due) -> None:
        """Have it taken. From any thread."""
        self._due.append(due)

    def advance(self) -> None:
        """Take a bounded part of the first one."""
        due = self._due[0]
        found = self._defects.attempt(lambda: self._part(due), f"policy {due.policy!r}", "took no step")
        if found is not None:
            self._due.popleft()
            self._stepping = None
            due.resolve(found)

    def close(self) -> list[Due]:
        """Take none any more; returns those that were not taken to their end."""
        left = list(self._due)
        self._due.clear()
        if self._stepping is not None:
            self._stepping.cancel()
            self._stepping = None
        return left

    def _part(self, due: Due) -> StepOutcome | None:
        """The outcome with the last one."""
        if self._stepping is None:
            self._stepping = self._trainer.begin_step(due.policy, due.optimizer)
        if self._stepping.advance():
            return None
        if self._trainer.policy(due.policy) is not self._stepping.policy:
            raise NotFound(f"policy {due.policy}", "was dropped while it took a step")
        return self._stepping.result()
