"""An internal error while planning for one base: other bases are unaffected, and this one keeps what it has. Pure."""

import msgspec

from mint_contracts.errors import Internal
from mint_contracts.records import Failure

AGAIN_S = 10.0  # a plan from scratch may take long, and the others would wait for it in every pass


class Defect(msgspec.Struct, frozen=True):
    """The exception, and when it was raised, by the snapshot's clock."""

    error: Exception
    at: float

    def stands(self, now: float) -> bool:
        """Whether it is too soon to plan for the base again."""
        return 0.0 <= now - self.at < AGAIN_S

    @property
    def again_at(self) -> float:
        """When the base is planned for again."""
        return self.at + AGAIN_S

    @property
    def failure(self) -> Failure:
        """The defect as a Failure for people."""
        raised = f"{type(self.error).__name__}: {self.error}"
        message = (
            f"internal error while planning for this base ({raised}); nothing was changed and the operator will "
            "retry. See the operator's log for the traceback, and report it"
        )
        found = Internal("", message)
        return Failure(found.reason, found.message, terminal=False)
