"""How much time updates may take between the steps of tenants.

Whatever the step thread does between two steps delays tenants' tokens. Updates may take a fixed share of the steps'
time, and the time that rollouts add to steps counts against that share. A piece that takes longer than the time left
borrows the rest, and later pieces wait until that is paid back, so a base with long pieces trains beside tenants as
fast as one with short pieces. Unused time is not saved up: spending it later would pause tenants for no reason.
"""

from mint_engine.scheduling.background import SHARE

LEAST = 0.01  # fraction of a step that updates always get, so that they progress even if rollouts use up the share


class Allowance:
    """Owned by the step thread. All times in seconds."""

    def __init__(self) -> None:
        self._left = 0.0

    def grant(self, step_s: float, tenants: int, rollouts: int) -> None:
        """Grant the time earned by one step, which served `tenants` requests and `rollouts`.

        Rollouts take at most their share of a step's rows.
        """
        own = step_s * tenants / (tenants + min(rollouts, SHARE * tenants))
        spare = max(SHARE * own - (step_s - own), LEAST * step_s)
        self._left = min(self._left, 0.0) + spare

    def halve(self, step_s: float) -> None:
        """Grant as much time as one step took, which served only rollouts."""
        self._left = min(self._left, 0.0) + step_s

    @property
    def open(self) -> bool:
        """Whether a piece may be computed now."""
        return self._left > 0.0

    def spend(self, piece_s: float) -> None:
        """Record that a piece has been computed in `piece_s`."""
        self._left -= piece_s
