"""The step thread's work besides serving: training, one bounded piece at a time, between steps."""

from typing import Protocol

SHARE = 0.25  # of tenants' part of a step, which training may add; most tokens then take less than 1.5 times as long


class Background(Protocol):
    """Background work of the step thread. Whoever adds work must wake the thread (`Stepper.wake`)."""

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        ...

    def advance(self, requests: int, step_s: float) -> None:
        """Do a bounded piece of work, or none if the `requests` that have not ended should go first. Never raises.

        `step_s` is the duration of their last step in seconds, 0 if there was none.
        """
        ...


class NoBackground:
    """An engine that only serves."""

    busy = False

    def advance(self, requests: int, step_s: float) -> None:
        """Do nothing."""
