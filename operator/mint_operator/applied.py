"""When an object that somebody else has changed is applied again: at once, and then with growing delays.

Whoever keeps changing it, like another controller, would otherwise be answered each time, without end.
"""

import time

import msgspec

from mint_contracts.backoff import Retry
from mint_operator.planning.manifests import Manifest

FIRST_S = 1.0
CAP_S = 300.0  # nobody who has stopped for this long still counts as changing it


class Applied(msgspec.Struct, frozen=True):
    """The digest of what was last applied and, after the same was applied more than once, when it may be again."""

    digest: str
    again: Retry | None = None

    @classmethod
    def after(cls, last: "Applied | None", manifest: Manifest) -> "Applied":
        """Return what holds after an application just now."""
        if last is None or last.digest != manifest.digest:
            return cls(manifest.digest)
        before = last.again
        if before is not None and time.monotonic() - before.at > CAP_S:
            before = None
        return cls(manifest.digest, Retry.after(before, first_s=FIRST_S, cap_s=CAP_S))

    def holds_back(self, manifest: Manifest) -> bool:
        """Whether it is too early to apply the same again."""
        return self.digest == manifest.digest and self.again is not None and not self.again.due
