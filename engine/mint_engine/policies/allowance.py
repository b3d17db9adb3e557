"""How much time updates may take between the steps of tenants.

A tenant's token comes later by what the step thread does between two steps. Updates may take a share of the time that
steps take, and what rollouts add to these steps counts as theirs. A piece that takes longer than what is left is lent
the rest, and the next ones wait until that is paid back: a base of long pieces trains beside tenants as fast as
one of short pieces. What is not used is not saved up: else a pause would follow where none was needed.
"""

from mint_engine.scheduling.background import SHARE

LEAST = 0.01  # of a step, where rollouts have taken the share already: updates never stand still


class Allowance:
    """Owned by the step thread. All times in seconds."""

    def __init__(self) -> None:
        self._left = 0.0

    def grant(self, step_s: float, tenants: int, rollouts: int) -> None:
        """A step has passed, of so many tenants' requests; rollouts had their share of its rows at most."""
        own = step_s * tenants / (tenants + min(rollouts, SHARE * tenants))
        spare = max(SHARE * own - (step_s - own), LEAST * step_s)
        self._left = min(self._left, 0.0) + spare

    @property
    def open(self) -> bool:
        """Whether a piece may be computed now."""
        return self._left > 0.0

    def spend(self, piece_s: float) -> None:
        """A piece has been computed."""
        self._left -= piece_s
