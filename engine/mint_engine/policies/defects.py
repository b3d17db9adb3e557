"""What goes wrong on the step thread beside serving: told to whoever waits, and a reason to look at the device."""

from collections.abc import Callable
from typing import TypeVar

import structlog
import torch

from mint_contracts.errors import EngineUnavailable, Internal, MintError, Overloaded

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Defects:
    """One engine's. `computes` tells whether its device still computes anything, and ends the engine where not."""

    def __init__(self) -> None:
        self.computes: Callable[[], bool] = lambda: True

    def attempt(self, work: Callable[[], T], subject: str, what: str) -> T | MintError:
        """What some work gives, or the error to tell of it: that something `what`, where it was no MintError.

        Overloaded where memory was full, which others may leave.
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
        # Out of the handler, which keeps the work's tensors: a full device must not be taken for a broken one.
        if self.computes():
            return kind(subject, why)
        return EngineUnavailable("engine", f"cannot compute any more: {subject} {why}")
