"""Measures the demand for each adapter: its requests in flight, as an exponentially weighted mean over time.

Requests in flight are what an adapter takes of an engine, whatever their rate or length (Little, Operations
Research 9, 1961). Adapters that are no longer asked for fade and are forgotten, so that memory stays bounded however
many adapters there are.
"""

import math

SMOOTHED_S = 10.0
LEAST = 0.02  # requests in flight, below which an adapter is forgotten
MOST = 256  # adapters above which idle ones are forgotten early


class _Mean:
    """A mean of `mean` up to the time `at`, and `count` requests since."""

    __slots__ = ("at", "count", "mean")

    def __init__(self, at: float) -> None:
        self.mean, self.count, self.at = 0.0, 0, at

    def pass_to(self, now: float) -> None:
        """Advance the mean to the time `now`."""
        left = math.exp(-max(0.0, now - self.at) / SMOOTHED_S)
        self.mean, self.at = self.count + (self.mean - self.count) * left, now


class Demand:
    """Means by adapter; times are in seconds. The bare base ("") is not counted."""

    def __init__(self) -> None:
        self._of: dict[str, _Mean] = {}

    def __len__(self) -> int:
        return len(self._of)

    def enter(self, adapter: str, count: int, now: float) -> None:
        """Count `count` new requests of an adapter."""
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
        """Count the end of one request of an adapter."""
        mean = self._of.get(adapter)
        if mean is not None:
            mean.pass_to(now)
            mean.count -= 1

    def top(self, most: int, now: float) -> dict[str, float]:
        """Return the demand, rounded to two digits, for the `most` adapters with the highest demand."""
        for mean in self._of.values():
            mean.pass_to(now)
        self._of = {name: mean for name, mean in self._of.items() if mean.count or mean.mean >= LEAST}
        found = sorted(self._of.items(), key=lambda each: (-each[1].mean, each[0]))[:most]
        return {name: float(f"{mean.mean:.2g}") for name, mean in found if mean.mean >= LEAST}

    def _forget(self, now: float) -> None:
        """Forget the half with the lower means of the adapters that have no request in flight."""
        for mean in self._of.values():
            mean.pass_to(now)
        idle = sorted(
            (name for name, mean in self._of.items() if not mean.count), key=lambda name: self._of[name].mean
        )
        for name in idle[: len(idle) // 2 + 1]:
            del self._of[name]
