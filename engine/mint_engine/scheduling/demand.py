"""How much each adapter is asked for: its requests in flight, as an exponentially weighted mean over time.

Requests in flight are what an adapter takes of an engine, whatever their number or length (Little, Operations
Research 9, 1961). What nobody asks for any more fades and is forgotten, so that the books stay small however many
adapters there are.
"""

import math

SMOOTHED_S = 10.0
LEAST = 0.02  # requests in flight; below that an adapter is forgotten
MOST = 256  # adapters that are remembered beside those with requests in flight


class _Mean:
    """`count` requests since `at`, a mean of `mean` until then."""

    __slots__ = ("at", "count", "mean")

    def __init__(self, at: float) -> None:
        self.mean, self.count, self.at = 0.0, 0, at

    def pass_to(self, now: float) -> None:
        """Let time go by."""
        left = math.exp(-max(0.0, now - self.at) / SMOOTHED_S)
        self.mean, self.at = self.count + (self.mean - self.count) * left, now


class Demand:
    """Means by adapter, by a clock of seconds; the bare base ("") is not counted."""

    def __init__(self) -> None:
        self._of: dict[str, _Mean] = {}

    def __len__(self) -> int:
        return len(self._of)

    def enter(self, adapter: str, count: int, now: float) -> None:
        """`count` requests were taken."""
        if not adapter:
            return
        mean = self._of.get(adapter)
        if mean is None:
            if len(self._of) >= MOST:
                self._forget(now)
            mean = self._of[adapter] = _Mean(now)
        mean.pass_to(now)
        mean.count += count

    def leave(self, adapter: str, now: float) -> None:
        """One request ended."""
        mean = self._of.get(adapter)
        if mean is not None:
            mean.pass_to(now)
            mean.count -= 1

    def top(self, most: int, now: float) -> dict[str, float]:
        """The adapters that are asked for most, at most so many, and how much, to two digits."""
        for mean in self._of.values():
            mean.pass_to(now)
        self._of = {name: mean for name, mean in self._of.items() if mean.count or mean.mean >= LEAST}
        found = sorted(self._of.items(), key=lambda each: (-each[1].mean, each[0]))[:most]
        return {name: float(f"{mean.mean:.2g}") for name, mean in found if mean.mean >= LEAST}

    def _forget(self, now: float) -> None:
        """Let the lesser half go of those that have no request in flight."""
        for mean in self._of.values():
            mean.pass_to(now)
        idle = sorted(
            (name for name, mean in self._of.items() if not mean.count), key=lambda name: self._of[name].mean
        )
        for name in idle[: len(idle) // 2 + 1]:
            del self._of[name]
