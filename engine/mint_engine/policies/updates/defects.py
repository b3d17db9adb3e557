"""Errors in the step thread's training work: reported to whoever waits, and a reason to check the device."""

from collections.abc import Callable
from typing import TypeVar

import structlog
import torch

from mint_contracts.errors import EngineUnavailable, Internal, MintError, Overloaded

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Defects:
    """One engine's. `computes` returns whether its device still computes, and ends the engine if it does not."""

    def __init__(self) -> None:
        self.computes: Callable[[], bool] = lambda: True

    def attempt(self, work: Callable[[], T], subject: str, what: str) -> T | MintError:
        """Return the result of `work`, or the error to report.

        An exception that is no MintError becomes one that says that `subject` `what` ("could not begin"): Overloaded
        if memory was full, since others may free some, EngineUnavailable if the device is broken, else Internal.
        """
        kind: type[MintError] = Internal
        try:
            return work()
        except MintError as error:
            return error
        except Exception as defect:  # noqa: BLE001 - whatever is wrong with it, the step thread goes on serving
            _log.exception("training_defect", subject=subject)
            why = f"{what} ({type(defect).__name__}: {defect})"
            kind = Overloaded if isinstance(defect, torch.OutOfMemoryError | MemoryError) else Internal
        # Outside the handler, which keeps the work's tensors alive: a full device must not look like a broken one.
        if self.computes():
            return kind(subject, why)
        return EngineUnavailable("engine", f"cannot compute any more: {subject} {why}")
