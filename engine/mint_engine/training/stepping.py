"""One policy's optimizer step, in bounded pieces between which the engine decodes."""

import torch

from mint_contracts.training import Optimizer
from mint_engine.model.device import settle
from mint_engine.training.optimizer import StepOutcome, take_step
from mint_engine.training.policy import Policy


class Stepping:
    """A step made by `Trainer.begin_step`. Owned by the step thread; the policy is `busy` until it is done."""

    def __init__(self, policy: Policy, optimizer: Optimizer, dtype: torch.dtype) -> None:
        self.policy = policy
        policy.busy = True
        self._device = policy.weights.device
        self._parts = take_step(policy, optimizer, dtype)
        self._outcome: StepOutcome | None = None
        self.done = False

    def advance(self) -> bool:
        """Compute the next bounded piece of the step; returns whether there is more.

        If it raises, the step is over: the policy is as before it, or `torn` if any number had changed.
        """
        if self.done:
            return False
        try:
            with torch.no_grad():
                next(self._parts)
            settle(self._device)
        except StopIteration as end:
            self._outcome = end.value
            self.cancel()
        except BaseException:
            self.cancel()
            raise
        return not self.done

    def cancel(self) -> None:
        """Give up the step, with the same effect as an error."""
        if not self.done:
            self.done = True
            self._parts.close()
            self.policy.busy = False

    def result(self) -> StepOutcome:
        """Return the outcome, once the step is done."""
        if self._outcome is None:
            raise RuntimeError(f"policy {self.policy.name} has taken no step")
        return self._outcome
