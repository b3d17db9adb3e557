"""Optimizer steps of policies, one after another on the step thread, each in bounded pieces."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mint_contracts.errors import EngineUnavailable, Internal, MintError, NotFound
from mint_contracts.training import Optimizer
from mint_engine.policies.defects import Defects
from mint_engine.training.optimizer import StepOutcome
from mint_engine.training.stepping import Stepping
from mint_engine.training.trainer import Trainer


@dataclass(eq=False, frozen=True)
class Due:
    """A step that a policy is to take. `resolve` is called before anything else is done on the step thread.

    Once that has ended, `resolve` is called by who closes what was left.
    """

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
        found = self._defects.attempt(lambda: self._part(due), f"policy {due.policy!r}", "could not take its step")
        if found is not None:
            if isinstance(found, MintError) and self._torn:
                found = _left(found)
            self._due.popleft()
            self._stepping = None
            due.resolve(found)

    @property
    def _torn(self) -> bool:
        """Whether the first one has changed some numbers, and not all."""
        return self._stepping is not None and self._stepping.policy.torn

    def close(self) -> list[Due]:
        """Take none any more but one whose numbers have begun to change; returns those that were not taken."""
        while self._torn:  # bounded, and nobody decodes any more
            self.advance()
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


def _left(error: MintError) -> MintError:
    """What to tell of a step that ended in its middle; to try that again would not help."""
    kind = EngineUnavailable if isinstance(error, EngineUnavailable) else Internal
    return kind(
        error.subject, f"{error.message} to its end; load a saved state, or drop the policy and create it again"
    )
