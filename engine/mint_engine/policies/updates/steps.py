"""Optimizer steps of policies, one after another on the step thread, each in bounded pieces."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mint_contracts.errors import EngineUnavailable, Internal, MintError, NotFound
from mint_contracts.training import Optimizer
from mint_engine.policies.updates.defects import Defects
from mint_engine.training.optimizer import StepOutcome
from mint_engine.training.stepping import Stepping
from mint_engine.training.trainer import Trainer


@dataclass(eq=False, frozen=True)
class Due:
    """A step that a policy is to take. `resolve` gets its outcome, before any other work of the step thread.

    After the step thread has ended, whoever closes the queue resolves the remaining ones.
    """

    policy: str
    optimizer: Optimizer
    resolve: Callable[[StepOutcome | MintError], None]
    draws: bool = False  # whether its policy draws rollouts


class Steps:
    """The queue of due steps."""

    def __init__(self, trainer: Trainer, defects: Defects) -> None:
        self._trainer, self._defects = trainer, defects
        self._due: deque[Due] = deque()
        self._stepping: Stepping | None = None  # of the first due step, once begun

    @property
    def busy(self) -> bool:
        """Whether any step is due."""
        return bool(self._due)

    @property
    def draws(self) -> bool:
        """Whether any is due of a policy that draws rollouts."""
        return any(due.draws for due in [*self._due])  # a copy, since other threads may `put`

    def put(self, due: Due) -> None:
        """Queue a step. Callable from any thread."""
        self._due.append(due)

    def advance(self) -> None:
        """Compute a bounded piece of the first due step."""
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
        """Whether the first due step has changed some of the policy's numbers, but not all."""
        return self._stepping is not None and self._stepping.policy.torn

    def close(self) -> list[Due]:
        """Finish a step that has begun to change numbers, and return the others untaken."""
        while self._torn:  # bounded, and nothing decodes any more
            self.advance()
        left = list(self._due)
        self._due.clear()
        if self._stepping is not None:
            self._stepping.cancel()
            self._stepping = None
        return left

    def _part(self, due: Due) -> StepOutcome | None:
        """Compute one piece; returns the outcome with the last one."""
        if self._stepping is None:
            self._stepping = self._trainer.begin_step(due.policy, due.optimizer)
        if self._stepping.advance():
            return None
        if self._trainer.policy(due.policy) is not self._stepping.policy:
            raise NotFound(f"policy {due.policy}", "was dropped while it took a step")
        return self._stepping.result()


def _left(error: MintError) -> MintError:
    """Return the error for a step that failed in its middle, which must not be retried."""
    kind = EngineUnavailable if isinstance(error, EngineUnavailable) else Internal
    return kind(
        error.subject, f"{error.message} to its end; load a saved state, or drop the policy and create it again"
    )
