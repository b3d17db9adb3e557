"""What the step thread does beside serving: training, a bounded piece at a time between two steps."""

from typing import Protocol

SHARE = 0.25  # of tenants' part of a step that training may add to it; most tokens take less than 1.5 times as long


class Background(Protocol):
    """Work of the step thread. Whoever gives it something to do wakes the thread (`Stepper.wake`)."""

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        ...

    def advance(self, requests: int, step_s: float) -> None:
        """Do something bounded, or nothing where `requests` that have not ended should go first. Never raises.

        Their last step took `step_s` seconds; 0 where there was none.
        """
        ...


class NoBackground:
    """An engine that only serves."""

    busy = False

    def advance(self, requests: int, step_s: float) -> None:
        """Nothing."""
